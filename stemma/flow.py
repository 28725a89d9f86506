"""The arrows between rooms, one type each: upload -> Pixels -> Encoded -> HostReply of Hits -> Found -> Pairings ->
Judged -> Answer.

Shape letters: H, W pixels; C channels; V views (0 upright, 1 mirrored; originals keep the upright one alone);
D embedding (256); N cells (14 x 14 = 196, row-major); F features of a cell (32); O objects of a picture.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Bytes3 = NDArray[np.uint8]
Int8 = NDArray[np.int8]
Float = NDArray[np.float32]

EMBEDDING_DIM = 256
CELL_GRID = 14
CELL_COUNT = CELL_GRID * CELL_GRID
CELL_DIM = 32
OBJECT_DIM = 256
OBJECTS_MAX, OBJECTS_MEAN = 32, 16
"""Boxes of one picture, and of photographs on average; the whole picture is an object beside them."""
IMAGES_PER_WANTED = 4
"""A search by objects keeps this many images for each one wanted, since codes only nearly rank as vectors do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """A decoded picture at working size. Nothing behind this type ever sees the uploaded bytes again."""

    rgb_HWC: Bytes3
    """uint8, EXIF-rotated, long side at most 512 (never enlarged)."""
    width: int
    """Full size in pixels, after EXIF rotation."""
    height: int
    sha256: str
    """Hex digest of the uploaded bytes."""
    format: str
    """JPEG, PNG, WEBP or GIF."""
    notes: tuple[str, ...] = ()
    """What a person should know, e.g. that only the first of several frames was used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """What the encoder says of a picture: int8 under one global scale each (docs/architecture.md, Exactness)."""

    embedding_VD: Int8
    """[V, 256]; a dot product of two rows stays under 2**24 and is exact in float32 in any order."""
    cells_VNF: Int8 | None
    """[V, 196, 32] local descriptors; None asks for no verification."""
    featureless: bool
    """True for a picture with nothing in it to recognise (all white, pure noise); its verdict is inconclusive."""
    weights: str
    """Digest of the weights that made it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objects:
    """Regions of one picture, best first; the whole picture is always the last one. No rows at all: never looked at."""

    box_O4: Float
    """x0, y0, x1, y1 in 0..1 of the picture."""
    score_O: Float
    """Detector's confidence."""
    embedding_OD: Int8
    """[O, 256], unit vectors under the one global scale of the objects' card."""

    def __len__(self) -> int:
        return len(self.score_O)


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """Objects of a query, as they are searched for and verified. No rows: there is nothing to search for."""

    box_O4: Float
    """x0, y0, x1, y1 in pixels of the working copy."""
    embedding_VOD: Int8
    """[2, O, 256]; object o of view 1 is object o mirrored."""
    hubness_VO: Float
    """[2, O]: see ``splice.hubness``."""

    def __len__(self) -> int:
        return len(self.box_O4)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardQuery:
    """One question to the shards, every default resolved: hosts decide nothing."""

    encoded: Encoded
    shortlist: int
    """Nearest images to return, before verification orders them."""
    nprobe: int
    """Lists to probe; 0 searches every list."""
    filter: str | None = None
    as_of: int | None = None
    min_version: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectQuery:
    """One question by objects to the shards, every default resolved: which images hold something that looks like one
    of these?"""

    objects_VOD: Int8
    """[V, O, 256]; object o of view 1 is object o mirrored."""
    images: int
    """Distinct images wanted."""
    scale: float
    """Of the objects' card: distances are those of unit vectors."""
    nprobe: int = 0
    """Lists to probe for each object where objects are coded; 0 searches every list."""
    filter: str | None = None
    as_of: int | None = None
    min_version: int | None = None
    exclude: tuple[int, ...] = ()
    """Rows that are no answer: the host and its duplicates."""

    def __post_init__(self) -> None:
        shape = self.objects_VOD.shape
        if len(shape) != 3 or shape[2] != OBJECT_DIM or not self.objects_VOD.size or self.objects_VOD.dtype != np.int8:
            raise ValueError(f"objects asked for are int8 [V, O, {OBJECT_DIM}], not {self.objects_VOD.dtype} {shape}")
        if self.images < 1 or self.scale <= 0:
            raise ValueError(f"at least one image is wanted and a scale is positive, not {self.images}, {self.scale}")

    @property
    def shortlist(self) -> int:
        """Images that a host returns, and that stand until the last cut. Codes are probed until so many images have
        been met even if the excluded ones were all among them."""
        return IMAGES_PER_WANTED * self.images + len(self.exclude)


AnyQuery = ShardQuery | ObjectQuery


class Unit(NamedTuple):
    """What is placed on a host as a whole: a sealed segment, or a block of the tail. Rows are half open."""

    row_lo: int
    row_hi: int
    kind: str
    """segment or tail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One image that a host found near. Order everywhere: (refined_distance, image_id)."""

    row: int
    image_id: str
    distance: float
    refined_distance: float
    coded: bool = False
    """``distance`` is of a code: the merger cuts such hits by (distance, image_id) before all are put in order."""
    match: float | None = None
    mirrored: bool = False
    """The mirrored view of the query is the one that matched."""
    affine: tuple[float, ...] | None = None
    """a, b, c, d, e, f of the verified map, (x, y) -> (ax + by + c, dx + ey + f), from the matching view of the query
    to the original, both in 0..1 of their own width and height; None where nothing was verified."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectHit(Hit):
    """One image of which some object is near some object of the query. ``refined_distance`` is D of OE-SIR eq. 7 (the
    smallest over all pairs, exact), ``distance`` the same, but between hosts and merger where ``coded``."""

    query_object: int
    """Which of the query's objects, and which of the image's, are nearest: the first such pair in order (i, j)."""
    donor_object: int
    donor_box: tuple[float, float, float, float]
    """Of that object, in 0..1 of the working copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostReply:
    """What one host answers to one query; to an ``ObjectQuery`` all hits are ``ObjectHit``."""

    hits: tuple[Hit, ...]
    """At most ``shortlist`` coded and ``shortlist`` exact ones, in order; ``stemma.index.merge`` makes the last cut."""
    images_searched: int
    """Live images (under filter and as_of) in the units that this host answered for."""
    images_total: int
    """Live images (under filter and as_of) that the catalog holds at ``seq``, over all hosts."""
    seq: int
    """The commit up to which this host has read."""
    live_by_rank: NDArray[np.int64] | None = None
    """Under a codec: live rows in each inverted list, in the query's own order of lists (nearest first). The merger
    sums them over hosts to decide how many lists to probe, so that the answer does not depend on the split."""
    nprobe: int = 0
    codec: str = "exact"
    without_objects: int = 0
    """To an ``ObjectQuery``: how many of ``images_searched`` have no objects, so that nothing of them was compared."""

    def __reduce__(self) -> tuple[Any, ...]:
        # by columns: 6,400 hits of 64 queries took 96 + 48 ms to pickle and back one by one, 12 + 19 so
        rest = {name: getattr(self, name) for name in _REPLY_FIELDS}
        kind = type(self.hits[0]) if self.hits else Hit
        return (_reply, (kind, tuple(zip(*map(_HIT_VALUES[kind], self.hits), strict=True)), rest))


_HIT_FIELDS = {kind: tuple(each.name for each in fields(kind)) for kind in (Hit, ObjectHit)}
_REPLY_FIELDS = tuple(each.name for each in fields(HostReply) if each.name != "hits")
_HIT_VALUES = {kind: attrgetter(*names) for kind, names in _HIT_FIELDS.items()}
# Of the slots: a frozen __init__ takes twice as long.
_HIT_SETTERS = {kind: tuple(getattr(kind, name).__set__ for name in names) for kind, names in _HIT_FIELDS.items()}


def _reply(kind: type[Hit], columns: tuple[tuple[Any, ...], ...], rest: dict[str, Any]) -> HostReply:
    hits = []
    setters = _HIT_SETTERS[kind]
    for values in zip(*columns, strict=True):
        hit = object.__new__(kind)
        for put, value in zip(setters, values, strict=True):
            put(hit, value)
        hits.append(hit)
    return HostReply(hits=tuple(hits), **rest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The merged shortlist of all hosts."""

    hits: tuple[Hit, ...]
    images_searched: int
    images_total: int
    missing_hosts: tuple[str, ...]
    seq: int
    nprobe: int
    codec: str
    notes: tuple[str, ...] = ()
    timings_ms: dict[str, float] = field(default_factory=dict)
    without_objects: int = 0
    """See ``HostReply``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """One candidate as the comparator takes it, beside a query."""

    original: bytes
    """Working copy, JPEG."""
    affine: tuple[float, ...] | None = None
    """See ``Hit.affine``; None where nothing was verified."""
    mirrored: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What the comparator says of one pair; everything in the query's frame. R, C rows and columns, long side 56."""

    benign: float
    manipulated: float
    distinct: float
    """Calibrated probabilities, sum 1."""
    logits: tuple[float, float, float]
    """What they were made of, in the same order; calibration is fitted on these."""
    heatmap_RC: Float
    """Probability of manipulation, absolute, 0 outside the overlap."""
    transform: tuple[tuple[float, float, float], ...] | None
    """3 x 3, query pixels (working size) to working-copy pixels; None when nothing aligned."""
    mirrored: bool
    correlation: float
    """Of the alignment, -1 to 1."""
    grid_RC: Float
    """DIC's own 7 x 7 map, divided by its maximum, bicubic (docs/papers.md 1.3); for the paper's tables."""
    explained: float = 1.0
    """Share of the query's texture that the original explains, 0 to 1 (``alignment.explained``)."""
