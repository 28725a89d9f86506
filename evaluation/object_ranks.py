"""Images ranked by their objects alone (OE-SIR eq. 7), for any number of objects an image: the slow twin of the index.

The distance of two images is the smallest over all pairs of their objects; ranks are by distance, then by id. Objects
of an image are its boxes by confidence and, always, the whole of it: "eight objects" are nine vectors.
Shape letters: I images; M objects of all of them; V views; O objects of one picture; D embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stemma.flow import OBJECTS_MAX, Bytes3, Int8
from stemma.index.codec import CODE_BYTES
from stemma.networks.detector import Detector, regions
from stemma.networks.objects import ObjectEncoder

COUNTS = (1, 2, 4, 8, 16, OBJECTS_MAX)
"""Numbers of objects that are compared, at most so many of a picture (OE-SIR Table 4)."""


class Describer:
    """Detector and embedding of objects."""

    def __init__(self, detector: Detector, encoder: ObjectEncoder, most: int = max(COUNTS)) -> None:
        self._detector, self._encoder, self._most = detector, encoder, most

    def stored(self, rgb_HWC: Bytes3) -> Int8:
        """[O, D], the boxes by confidence and the whole picture last."""
        return self._encoder.embed(rgb_HWC, self._boxes(rgb_HWC, closely=True)).embedding_OD

    def asked(self, rgb_HWC: Bytes3) -> Int8:
        """[V, O, D], upright and mirrored."""
        return self._encoder.embed_views(rgb_HWC, self._boxes(rgb_HWC))[1]

    def _boxes(self, rgb_HWC: Bytes3, *, closely: bool = False) -> NDArray[np.float32]:
        return regions(rgb_HWC, self._detector, self._most, closely=closely)[0][: self._most]


def first(objects: Int8, most: int) -> Int8:
    """The first ``most`` objects along the last axis but one, and the whole picture."""
    whole = objects.shape[-2] - 1
    return objects[..., [*range(min(most, whole)), whole], :]


@dataclass(frozen=True, slots=True)
class Shelf:
    """Objects of many images."""

    ids: tuple[str, ...]
    starts_I: NDArray[np.intp]
    vector_MD: Int8

    @classmethod
    def of(cls, ids: Sequence[str], objects: Iterable[Int8], most: int) -> Shelf:
        """Of the first ``most`` objects of each image."""
        kept = [first(each, most) for each in objects]
        starts_I = np.cumsum([0, *(len(each) for each in kept)])[:-1]
        return cls(tuple(ids), starts_I, np.concatenate(kept))

    @property
    def code_bytes_per_image(self) -> int:
        """On average: a plain picture has few objects."""
        return round(len(self.vector_MD) * CODE_BYTES["objects"] / len(self.ids))

    def distances(self, objects_VOD: Int8) -> NDArray[np.float32]:
        """[I]; int8 products are exact, so equal objects are equally far. Not scaled: only the order counts."""
        rows_QD = objects_VOD.reshape(-1, objects_VOD.shape[-1]).astype(np.float32)
        near_M = (rows_QD @ self.vector_MD.T.astype(np.float32)).max(0)
        return np.asarray(-np.maximum.reduceat(near_M, self.starts_I), np.float32)

    def rank(self, distance_I: NDArray[np.float32], wanted: str, without: Iterable[str] = ()) -> int:
        """The place of an image, 1 for the first; images ``without`` are taken out beforehand."""
        return place(self.ids, distance_I, wanted, without)


def place(ids: Sequence[str], distance_I: NDArray[np.float32], wanted: str, without: Iterable[str] = ()) -> int:
    """The place of ``wanted`` by (distance, id), 1 for the first."""
    at, left_out = ids.index(wanted), set(without)
    ahead = ((distance_I[i], each) < (distance_I[at], wanted) for i, each in enumerate(ids) if each not in left_out)
    return 1 + sum(ahead)
