"""Where the pieces of a query come from: its objects, the images that hold alike ones, and those that are verified.

    changed regions of a found original, else what the detector sees -> described -> shards -> best 20 -> verified
    a found original -> copies within it (clones)

The science is in ``splice`` and ``clones``, the networks behind a ``Finder``; here is their order. Whatever is slow,
down or partial costs donors and is noted, and never the answer.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import cv2
import numpy as np

from stemma import clones, splice
from stemma.api import Donor, Metadata
from stemma.errors import StemmaError
from stemma.flow import Described, Float, Found, Hit, ObjectHit, ObjectQuery, Objects, Pixels
from stemma.networks.weights import ObjectsCard
from stemma.splice import Box4
from stemma.stages import Stages
from stemma.vision.geometry import Map33, Picture

SHARE = 0.9
"""Of the time that is left behind the comparison: the rest is for metadata and the reply."""
UNTRACED = "the search for donors is incomplete"
LATE = f"{UNTRACED}: there was no time for it; give more deadline_ms"
NO_OBJECTS = (
    "no donor can be found here: the collection was stored without objects (stemma ingest --reencode adds them)"
)
OTHER_OBJECTS = (
    "no donor can be found here: the collection's objects are of other weights (stemma ingest --reencode moves them)"
)
COVERED_MIN = 0.5
"""Share of a changed region that a copy within the host must cover, for it to be searched for no further."""
VERIFIED_PER_OBJECT = 4
"""Fewer hits are verified of few regions: what gave one of them is among its nearest, or far off. Of 199 splices whose
box is known to a twelfth of its sides the donor is among four in .804, among six in .809, among twenty in .814."""
DIGITS = 4
"""Digits of a probability that is sent."""
MASK_LEVEL = 127
PNG_LEVEL = 1
"""A mask is nearly nothing at any level of compression, and 12 megapixels of it take 40 ms at this one."""


class Finder(Protocol):
    @property
    def card(self) -> ObjectsCard:
        """Known before anything is loaded."""
        ...

    @property
    def weights(self) -> str:
        """What the objects that it makes are known by; known before anything is loaded."""
        ...

    async def objects(self, pixels: Pixels) -> Objects:
        """What a stored picture is found by. Raises ``Unavailable``."""
        ...

    async def describe(self, pixels: Pixels, box_O4: Float | None) -> Described:
        """What is searched for: these boxes, or None for whatever the detector sees. Raises ``Unavailable``."""
        ...

    async def verify(
        self, pixels: Pixels, described: Described, hits: Sequence[ObjectHit], copies: Sequence[bytes]
    ) -> list[splice.Donor]:
        """The hits, whose working copies are given, by the probability that they are donors. Raises ``Unavailable``."""
        ...

    async def clones(self, pixels: Pixels, box_O4: Float, host: bytes, transform_33: Map33) -> list[clones.Clone]:
        """Those of the boxes that show another place of the host. Raises ``Unavailable``."""
        ...


class Shards(Protocol):
    async def search(self, query: ObjectQuery, deadline_ms: float) -> Found: ...

    async def pixels(self, rows: Sequence[int]) -> list[bytes]: ...

    async def objects_weights(self) -> str | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sought:
    """One question for donors, every default resolved."""

    pixels: Pixels
    host: Hit | None
    """The original that was found; its changed regions are searched for, and copies within it."""
    box_O4: Float | None
    """Those regions, in pixels of the working size; None: no original was found, and the detector says."""
    host_from_query_33: Map33 | None
    excluded: tuple[int, ...]
    """Rows that are no donors: the host and its duplicates."""
    nprobe: int
    filter: str | None
    as_of: int | None
    min_version: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A donor before anything is said of it to a person; boxes in pixels of the two working copies."""

    row: int
    image_id: str
    distance: float
    probability: float
    query_box: Box4
    donor_box: Box4
    mask: tuple[tuple[int, int, int, int], Picture] | None
    shown: bool
    clone: bool


@dataclass(slots=True)
class Traced:
    """What was found so far: filled stage by stage, so that a failure loses nothing."""

    traces: list[Trace] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def best(self, most: int) -> list[Trace]:
        """By probability, highest first, then image_id; clones before others that are as likely."""
        return sorted(self.traces, key=lambda one: (-one.probability, not one.clone, one.image_id))[:most]


async def trace(sought: Sought, finder: Finder, shards: Shards, stages: Stages) -> Traced:
    """The donors of one query. Raises nothing that the search for them alone has caused."""
    traced = Traced()
    try:
        async with asyncio.timeout(SHARE * stages.left_ms() / 1e3):
            await _clones(sought, finder, shards, traced, stages)
            await _donors(sought, finder, shards, traced, stages)
    except TimeoutError:
        traced.notes.append(LATE)
    except StemmaError as error:
        traced.notes.append(f"{UNTRACED}: {error.detail}")
    except Exception as error:  # whatever it is (OpenCV's own, say), it costs the donors and never the answer
        # what it says may hold a remote traceback, with paths: for who runs this, not for who asks
        logging.getLogger(__name__).exception("the search for donors")
        traced.notes.append(f"{UNTRACED}: an unforeseen {type(error).__name__}")
    return traced


async def _clones(sought: Sought, finder: Finder, shards: Shards, traced: Traced, stages: Stages) -> None:
    host, box_O4, transform_33 = sought.host, sought.box_O4, sought.host_from_query_33
    if host is None or box_O4 is None or transform_33 is None:
        return
    with stages.stage("donor_verify"):
        (copy,) = await shards.pixels([host.row])
        found = await finder.clones(sought.pixels, box_O4, copy, transform_33)
    traced.traces += [_of_clone(one, host) for one in found]


async def _donors(sought: Sought, finder: Finder, shards: Shards, traced: Traced, stages: Stages) -> None:
    card, made_by = finder.card, await shards.objects_weights()
    if made_by != finder.weights:
        traced.notes.append(NO_OBJECTS if made_by is None else OTHER_OBJECTS)
        return
    box_O4 = _unexplained(sought.box_O4, traced.traces)
    if box_O4 is not None and not len(box_O4):
        return
    with stages.stage("objects"):
        described = await finder.describe(sought.pixels, box_O4)
    if not len(described):
        return
    with stages.stage("donor_search"):
        found = await shards.search(_query(sought, described, card), stages.left_ms())
    traced.notes += _partial(found)
    hits = [hit for hit in found.hits if isinstance(hit, ObjectHit)]
    most = min(splice.VERIFIED_MAX, VERIFIED_PER_OBJECT * len(described))
    hits = splice.shortlist(hits, described.hubness_VO, sought.excluded, most, card.damped_max)
    if not hits:
        return
    with stages.stage("donor_verify"):
        copies = await shards.pixels([hit.row for hit in hits])
        verified = await finder.verify(sought.pixels, described, hits, copies)
    traced.traces += [_of_donor(one, card.donor_min) for one in verified]


def _unexplained(box_O4: Float | None, traces: Sequence[Trace]) -> Float | None:
    """The regions that no copy within the host covers already: those have their donor."""
    if box_O4 is None:
        return None
    kept = [box for box in box_O4 if not any(_covered(box, one.query_box) >= COVERED_MIN for one in traces)]
    return np.array(kept, np.float32).reshape(-1, 4)


def _covered(box: Sequence[float], other: Sequence[float]) -> float:
    """Share of ``box`` that lies in the other."""
    width, height = (min(box[at + 2], other[at + 2]) - max(box[at], other[at]) for at in (0, 1))
    return max(width, 0.0) * max(height, 0.0) / max((box[2] - box[0]) * (box[3] - box[1]), 1e-9)


def _query(sought: Sought, described: Described, card: ObjectsCard) -> ObjectQuery:
    return ObjectQuery(
        objects_VOD=described.embedding_VOD,
        images=splice.SEARCHED_MAX,
        scale=card.scale,
        nprobe=sought.nprobe,
        filter=sought.filter,
        as_of=sought.as_of,
        min_version=sought.min_version,
        exclude=sought.excluded,
    )


def _partial(found: Found) -> list[str]:
    notes = [f"{UNTRACED}: {note}" for note in found.notes]
    if found.missing_hosts or found.images_searched < found.images_total:
        searched = f"{found.images_searched} of {found.images_total} images were searched for objects"
        notes.append(f"{UNTRACED}: {searched}")
    if found.without_objects:
        there = f"{found.without_objects} of {found.images_searched} images were stored without objects"
        notes.append(f"{UNTRACED}: {there} (stemma ingest --reencode adds them)")
    return notes


def _of_donor(one: splice.Donor, donor_min: float) -> Trace:
    return Trace(
        row=one.hit.row,
        image_id=one.hit.image_id,
        distance=one.hit.refined_distance,
        probability=one.probability,
        query_box=one.query_box,
        donor_box=one.donor_box,
        mask=one.mask,
        shown=one.probability >= donor_min,
        clone=False,
    )


def _of_clone(one: clones.Clone, host: Hit) -> Trace:
    return Trace(
        row=host.row,
        image_id=host.image_id,
        distance=0.0,
        probability=one.probability,
        query_box=one.query_box,
        donor_box=one.donor_box,
        mask=one.mask,
        shown=True,  # what is too unlikely is none
        clone=True,
    )


async def presented(traces: Sequence[Trace], pixels: Pixels, metadata: Sequence[Metadata]) -> tuple[Donor, ...]:
    """The contract's form of each. In a thread: a mask has as many pixels as its place in the query has."""
    both = list(zip(traces, metadata, strict=True))
    return await asyncio.to_thread(lambda: tuple(_presented(one, pixels, known) for one, known in both))


def _presented(one: Trace, pixels: Pixels, metadata: Metadata) -> Donor:
    box, mask = on_query(one, pixels)
    return Donor(
        image_id=one.image_id,
        query_box=box,
        donor_box=one.donor_box,
        distance=one.distance,
        probability=round(one.probability, DIGITS),
        mask=None if mask is None else base64.b64encode(mask).decode("ascii"),
        shown=one.shown,
        clone=one.clone,
        metadata=metadata,
    )


def on_query(one: Trace, pixels: Pixels) -> tuple[tuple[int, int, int, int], bytes | None]:
    """(box in whole pixels of the full-size query, mask of its size as PNG): around what the mask covers, where there
    is one."""
    if one.mask is None or not one.mask[1].any():
        return _full_size(one.query_box, pixels), None
    (x0, y0, _, _), mask_HW = one.mask
    left, top, width, height = cv2.boundingRect(mask_HW)
    tight_HW = np.ascontiguousarray(mask_HW[top : top + height, left : left + width])
    box = _full_size((x0 + left, y0 + top, x0 + left + width, y0 + top + height), pixels)
    size = (box[2] - box[0], box[3] - box[1])
    if size != (width, height):
        tight_HW = cv2.resize(tight_HW, size, interpolation=cv2.INTER_LINEAR)
    grey_HW = np.where(tight_HW > MASK_LEVEL, 255, 0).astype(np.uint8)
    done, body = cv2.imencode(".png", grey_HW, [cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL])
    assert done
    return box, body.tobytes()


def _full_size(box: Sequence[float], pixels: Pixels) -> tuple[int, int, int, int]:
    """The whole pixels, at least one each way, that hold a box of the working copy."""
    height, width = pixels.rgb_HWC.shape[:2]
    sides = []
    for low, high, scale, most in (
        (box[0], box[2], pixels.width / width, pixels.width),
        (box[1], box[3], pixels.height / height, pixels.height),
    ):
        first = min(max(math.floor(low * scale + 1e-6), 0), most - 1)
        sides.append((first, max(min(math.ceil(high * scale - 1e-6), most), first + 1)))
    (x0, x1), (y0, y1) = sides
    return x0, y0, x1, y1
