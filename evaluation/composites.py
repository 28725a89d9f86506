"""COCO-Fake in small (OE-SIR 4.3, Table 3): objects of photographs laid into others, both of which are searched for.

    stemma evaluate splice --data DIR [--part heldout] --json

The paper's 58 composites and 10,000 pictures are not to be had, so each usable object of the part's photographs (at
most 60) is laid into another of them, and asked of those photographs, the other part's and 250 training ones. The host
is a near copy of the composite and is there too: a rank is told of the donor, of the host and of either, and once more
of the donor with the host taken out, which is what the product does. ``by_method``: the four global descriptors of the
whole picture on the encoder's trunk; objects alone (eq. 7), eight a picture; and the product (``joint``): the original
by whole pictures, compared, then its donors by the regions that were changed. ``by_objects`` is Table 4 with the bytes
of codes that an image then takes. Part ``heldout`` is for the final figure alone: nothing may be chosen on it.

Letters: C channels; H, W rows and columns; I images; D embedding.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics import rank_of, recall_at
from evaluation.object_ranks import COUNTS, Shelf, first, place
from evaluation.pictures import jpeg
from evaluation.pooling import POOLINGS, Whitening, descriptor
from evaluation.queries import DEADLINE_MS, DONORS, K, Search
from stemma.api import Answer, Ask
from stemma.flow import OBJECTS_MAX, Bytes3, Float, Int8
from stemma.terminal import progress
from training import splices, split
from training.data import Photographs
from training.splices import CutOut

Part = Literal["calibrate", "heldout"]

SEED = 65
COMPOSITES = 60
DISTRACTORS = 250
QUALITY = 95
"""A composite was recompressed already; for the product it becomes a file."""
DEPTHS = (1, 10)
WITHOUT_HOST = "donor_without_host"

MapOf = Callable[[Bytes3], Float]
"""Picture -> the trunk's last map [C, H, W]."""
Describe = Callable[[Bytes3], Int8]
Vectors = dict[str, Float]
"""Descriptor's name -> one vector an image [I, D]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Composite:
    """A picture made of two photographs of the collection."""

    rgb_HWC: Bytes3
    donor: str
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """Places in one ranking, 1 for the first; None: not listed."""

    donor: int | None
    host: int | None
    without_host: int | None
    """Of the donor, the host taken out beforehand."""

    @property
    def either(self) -> int | None:
        return min((each for each in (self.donor, self.host) if each is not None), default=None)


@dataclass(frozen=True, slots=True)
class Library:
    """The photographs that are searched, and from which the composites are made."""

    paths: tuple[Path, ...]
    photographs: Photographs
    training: int
    """So many of the first are training photographs, on which whitening is fitted."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(path.name for path in self.paths)

    def ids(self) -> dict[str, str]:
        """Image id (hex SHA-256 of the file) -> name."""
        return {hashlib.sha256(path.read_bytes()).hexdigest(): path.name for path in self.paths}

    def __getitem__(self, name: str) -> Bytes3:
        return self.photographs[self.names.index(name)]


def library(data: Path) -> Library:
    """250 training photographs, those of calibration and validation, and the held-out ones."""
    listed, photos = split.load(), data / "photos"
    order = np.random.default_rng([SEED, 0]).permutation(len(listed.train))[:DISTRACTORS]
    training = sorted(listed.train[place] for place in order)
    files = [f"train/{name}" for name in (*training, *listed.calibrate)]
    files += [f"{part}/{path.name}" for part in ("val", "heldout") for path in sorted((photos / part).glob("*.jpg"))]
    return Library(tuple(photos / file for file in files), Photographs(photos, files), len(training))


def part_names(data: Path, part: Part) -> list[str]:
    """The photographs whose objects, and into which, a part's composites are made."""
    folder = data / "photos" / ("val" if part == "calibrate" else part)
    names = sorted(path.name for path in folder.glob("*.jpg"))
    return sorted([*split.load().calibrate, *names]) if part == "calibrate" else names


def compose(books: Library, cuts: Sequence[CutOut], hosts: Sequence[str], most: int = COMPOSITES) -> list[Composite]:
    """Each cut-out once, in a random order and into a random host that is not its own photograph."""
    made = []
    for number in np.random.default_rng([SEED, 1]).permutation(len(cuts))[:most].tolist():
        cut, rng = cuts[number], np.random.default_rng([SEED, 2, number])
        others = [name for name in hosts if name != cut.name]
        host = others[int(rng.integers(len(others)))]
        rgb_HWC = splices.splice(books[host], books[cut.name], cut, rng).rgb_HWC
        made.append(Composite(rgb_HWC=rgb_HWC, donor=cut.name, host=host))
    return made


def recalls(ranks: Sequence[Ranks]) -> dict[str, Any]:
    """R@1 and R@10 of donor, host and either, and of the donor with the host taken out."""
    places = {
        "donor": [each.donor for each in ranks],
        "host": [each.host for each in ranks],
        "either": [each.either for each in ranks],
        WITHOUT_HOST: [each.without_host for each in ranks],
    }
    told = {name: {f"R@{k}": recall_at(k, each).json() for k in DEPTHS} for name, each in places.items()}
    return {**told, "n": len(ranks)}


def ranked(ids: Sequence[str], distance_I: NDArray[np.float32], made: Composite) -> Ranks:
    """The places in a ranking by distance, then by id."""
    return Ranks(
        donor=place(ids, distance_I, made.donor),
        host=place(ids, distance_I, made.host),
        without_host=place(ids, distance_I, made.donor, [made.host]),
    )


def by_pooling(books: Library, made: Sequence[Composite], map_of: MapOf) -> dict[str, Any]:
    """The global descriptors, whitened on the training photographs."""
    with progress("global descriptors", len(books.names) + len(made)) as done:
        shelf = [_pooled(map_of(books.photographs[at]), done) for at in range(len(books.names))]
        asked = [_pooled(map_of(each.rgb_HWC), done) for each in made]
    found = {}
    for name in POOLINGS:
        whitening = Whitening.fitted(np.concatenate([shelf[at][name] for at in range(books.training)]))
        vector_ID = np.stack([descriptor(each[name], whitening) for each in shelf])
        distances = [-(vector_ID @ descriptor(each[name], whitening)) for each in asked]
        found[name] = recalls([ranked(books.names, far_I, one) for far_I, one in zip(distances, made, strict=True)])
    return found


def _pooled(map_CHW: Float, done: Callable[[int], None]) -> Vectors:
    done(1)
    return {name: pool(map_CHW) for name, pool in POOLINGS.items()}


def by_objects(books: Library, made: Sequence[Composite], stored: Describe, asked: Describe) -> list[dict[str, Any]]:
    """Objects alone, for 1 to 16 of them a picture."""
    with progress("objects", len(books.names) + len(made)) as done:
        objects = []
        for at in range(len(books.names)):
            objects.append(stored(books.photographs[at]))
            done(1)
        queries = []
        for one in made:
            queries.append(asked(one.rgb_HWC))
            done(1)
    rows = []
    for most in COUNTS:
        shelf = Shelf.of(books.names, objects, most)
        far = [shelf.distances(first(each, most)) for each in queries]
        told = recalls([ranked(books.names, far_I, one) for far_I, one in zip(far, made, strict=True)])
        rows.append({"objects": most, **told, "code_bytes_per_image": shelf.code_bytes_per_image})
    return rows


def by_product(made: Sequence[Composite], search: Search, name_of: Mapping[str, str]) -> dict[str, Any]:
    """The product's answers; ``name_of`` an image id is its photograph. A donor is never ranked beside the host, so
    both of its ranks are the one among donors; host and donor are told by two lists, and either by the better."""
    ranks = []
    with progress("product", len(made)) as done:
        for one in made:
            answer = search(jpeg(one.rgb_HWC, QUALITY), Ask(k=K, donors=DONORS, deadline_ms=DEADLINE_MS))
            ranks.append(answered(answer, one, name_of))
            done(1)
    return recalls(ranks)


def answered(answer: Answer, made: Composite, name_of: Mapping[str, str]) -> Ranks:
    """The places in an answer's two lists."""
    donors = [name_of[donor.image_id] for donor in answer.donors if not donor.clone]
    donor = rank_of(made.donor, donors)
    host = rank_of(made.host, [name_of[candidate.image_id] for candidate in answer.candidates])
    return Ranks(donor=donor, host=host, without_host=donor)


def splice_protocol(
    data: Path,
    *,
    part: Part,
    map_of: MapOf,
    stored: Describe,
    asked: Describe,
    searching: Callable[[Sequence[Path]], AbstractContextManager[Search]] | None = None,
    most: int = COMPOSITES,
) -> dict[str, Any]:
    """``{"splice": {part, images, composites, by_method, by_objects}}``.

    ``searching`` stores some files and gives the search over them; None leaves the product out.
    """
    begun, books, names = time.monotonic(), library(data), part_names(data, part)
    made = compose(books, splices.cut_outs(data, set(names)), names, most)
    counted = by_objects(books, made, stored, asked)
    methods = {
        **by_pooling(books, made, map_of),
        "objects": counted[COUNTS.index(OBJECTS_MAX)],
    }
    if searching is not None:
        with searching(books.paths) as search:
            methods["joint"] = by_product(made, search, books.ids())
    return {
        "splice": {
            "part": part,
            "images": len(books.names),
            "composites": len(made),
            "by_method": methods,
            "by_objects": counted,
        },
        "splice_seconds": round(time.monotonic() - begun, 1),
    }
