"""Donors in an answer, over stand-ins: when they are searched for, what becomes of them, and what they may cost."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from stemma import donors, verdict
from stemma.api import Answer, Ask
from stemma.clones import Clone
from stemma.config import load
from stemma.errors import Unavailable
from stemma.flow import OBJECT_DIM, Described, Encoded, Found, Hit, Judged, ObjectHit, ObjectQuery, Pairing, Pixels
from stemma.networks.weights import ComparatorCard, ObjectsCard
from stemma.query import Engine, answer
from stemma.splice import VERIFIED_FIRST, Donor

MATCH = 10.0
SHOWN = 0.7
SIZE = (600, 400)
"""Full size of the query; it is worked on at half of it."""
COMPARATOR = ComparatorCard(
    name="c", size="starter", digest="", temperature=1.0, margin=0.2, distinct_min=0.5, heatmap_min=0.5
)
OBJECTS = ObjectsCard(name="o", size="starter", digest="objects", encoder="weights", scale=100.0, donor_min=SHOWN)
BENIGN, MANIPULATED, DISTINCT = (0.9, 0.05, 0.05), (0.05, 0.9, 0.05), (0.05, 0.05, 0.9)


@dataclass
class EncoderCard:
    digest: str = "weights"
    match_threshold: float = MATCH

    def match_probability(self, score: float) -> float:
        return float(score >= MATCH)


@dataclass
class House:
    """All parts of an engine in one; ``hits`` are images by whole pictures, ``given`` rows by objects."""

    hits: tuple[Hit, ...] = ()
    given: dict[int, float] = field(default_factory=dict)
    """Row -> probability that the finder gives it."""
    copies: tuple[Clone, ...] = ()
    said: tuple[float, float, float] = MANIPULATED
    explained: float = 1.0
    changed: tuple[slice, slice] = np.s_[10:20, 14:42]
    """Of the heatmap, 37 x 56."""
    mask: tuple[tuple[int, int, int, int], NDArray[np.uint8]] | None = None
    featureless: bool = False
    made_by: str | None = "made"
    found: dict[str, Any] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    regions: Any = "nobody asked"
    query: ObjectQuery | None = None
    card: ObjectsCard = OBJECTS
    weights: str = "made"

    async def decode(self, body: bytes) -> Pixels:
        rgb_HWC = np.zeros((SIZE[1] // 2, SIZE[0] // 2, 3), np.uint8)
        return Pixels(rgb_HWC=rgb_HWC, width=SIZE[0], height=SIZE[1], sha256="0" * 64, format="PNG")

    async def encode(self, pixels: Pixels, *, mirrored: bool) -> Encoded:
        cells, embedding = np.zeros((2, 196, 32), np.int8), np.zeros((2, 256), np.int8)
        return Encoded(embedding_VD=embedding, cells_VNF=cells, featureless=self.featureless, weights="weights")

    async def search(self, query: Any, deadline_ms: float) -> Found:
        if isinstance(query, ObjectQuery):
            self.calls.append("search objects")
            self.query = query
            rows = [row for row in self.given if row not in query.exclude]
            return replace(_found(tuple(_object_hit(row) for row in rows)), **self.found)
        return _found(self.hits)

    async def identical(self, sha256: str, plan: Any) -> Found | None:
        return None

    async def metadata(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        return [{"name": f"{row}.jpg"} for row in rows]

    async def pixels(self, rows: Sequence[int]) -> list[bytes]:
        return [b"%d" % row for row in rows]

    async def objects_weights(self) -> str | None:
        return self.made_by

    async def compare(self, query: Pixels, pairings: Sequence[Pairing]) -> list[Judged]:
        heatmap_RC = np.zeros((37, 56), np.float32)
        heatmap_RC[self.changed] = 0.9
        benign, manipulated, distinct = self.said
        one = Judged(
            benign=benign,
            manipulated=manipulated,
            distinct=distinct,
            logits=(0.0, 0.0, 0.0),
            heatmap_RC=heatmap_RC,
            transform=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
            mirrored=False,
            correlation=0.9,
            grid_RC=heatmap_RC,
            explained=self.explained,
        )
        return [one for _ in pairings]

    async def describe(self, pixels: Pixels, box_O4: Any) -> Described:
        self.calls.append("describe")
        self.regions = box_O4
        some_O4 = np.array([[0, 0, 50, 50]] * 5, np.float32) if box_O4 is None else box_O4
        return Described(
            box_O4=some_O4,
            embedding_VOD=np.ones((2, len(some_O4), OBJECT_DIM), np.int8),
            hubness_VO=np.ones((2, len(some_O4)), np.float32),
        )

    async def verify(self, pixels: Pixels, described: Described, hits: Any, copies: Sequence[bytes]) -> list[Donor]:
        self.calls.append("verify")
        assert list(copies) == [b"%d" % hit.row for hit in hits]
        out = [_donor(hit, self.given[hit.row], self.mask) for hit in hits]
        return sorted(out, key=lambda one: -one.probability)

    async def clones(self, pixels: Pixels, box_O4: Any, host: bytes, transform_33: Any) -> list[Clone]:
        self.calls.append("clones")
        return list(self.copies)


def _found(hits: tuple[Hit, ...]) -> Found:
    return Found(hits=hits, images_searched=9, images_total=9, missing_hosts=(), seq=1, nprobe=0, codec="exact")


def _hit(row: int, match: float | None) -> Hit:
    return Hit(row=row, image_id=f"{row:03}", distance=0.1, refined_distance=0.1, match=match)


def _object_hit(row: int) -> ObjectHit:
    return ObjectHit(
        row=row,
        image_id=f"{row:03}",
        distance=0.5,
        refined_distance=0.5,
        query_object=0,
        donor_object=0,
        donor_box=(0, 0, 1, 1),
    )


def _donor(hit: ObjectHit, probability: float, mask: Any) -> Donor:
    return Donor(
        hit=hit,
        query_box=(10.25, 20.0, 30.0, 40.0),
        donor_box=(0.0, 0.0, 9.0, 9.0),
        damped=0.0,
        match=9.0,
        probability=probability,
        transform_33=None,
        mirrored=False,
        mask=mask,
    )


def _clone(probability: float) -> Clone:
    return Clone(
        query_box=(10.0, 10.0, 12.0, 12.0),
        donor_box=(50.0, 10.0, 52.0, 12.0),
        probability=probability,
        transform_33=np.eye(3),
        mirrored=False,
        mask=((10, 10, 12, 12), np.full((2, 2), 255, np.uint8)),
        evidence=None,  # type: ignore[arg-type]
    )


def ask(house: House, **parameters: Any) -> Answer:
    engine = Engine(
        decoder=house,
        encoder=house,
        shards=house,  # type: ignore[arg-type]  # no question here asks for a stored original
        comparator=house,
        finder=house,  # type: ignore[arg-type]  # nor is anything stored
        card=EncoderCard(),  # type: ignore[arg-type]
        comparator_card=COMPARATOR,
        settings=load(),
    )
    return asyncio.run(answer(b"some bytes", Ask(**parameters), engine))


STRANGER: dict[str, Any] = {"hits": (_hit(1, 1.0),)}
CHANGED: dict[str, Any] = {"hits": (_hit(1, 30.0), _hit(2, 12.0), _hit(3, 9.0))}


def test_an_unknown_picture_is_searched_for_by_all_that_the_finder_sees() -> None:
    house = House(**STRANGER, given={1: 0.2, 5: 0.9})
    result = ask(house)
    assert house.calls == ["describe", "search objects", "verify"]
    assert house.regions is None
    assert [(one.image_id, one.shown, one.metadata["name"]) for one in result.donors] == [
        ("005", True, "5.jpg"),
        ("001", False, "1.jpg"),
    ]
    assert (result.verdict, result.confidence, result.original) == ("spliced", 0.9, None)
    assert {"objects", "donor_search", "donor_verify"} <= result.timings_ms.keys()


def test_a_changed_picture_is_searched_for_by_its_changed_regions_alone() -> None:
    house = House(**CHANGED, given={5: 0.9})
    result = ask(house)
    assert house.calls == ["clones", "describe", "search objects", "verify"]
    np.testing.assert_allclose(house.regions, [[75, 200 * 10 / 37, 225, 200 * 20 / 37]], rtol=1e-5)
    assert result.verdict == "manipulated"
    assert [one.image_id for one in result.donors] == ["005"]


def test_the_host_and_its_duplicates_are_never_donors() -> None:
    house = House(**CHANGED, given=dict.fromkeys(range(1, 6), 0.9))
    result = ask(house, donors=20)
    assert house.query is not None
    assert house.query.exclude == (1, 2)
    assert sorted(one.image_id for one in result.donors) == ["003", "004", "005"]


def test_what_the_comparator_tells_apart_may_be_a_donor() -> None:
    house = House(hits=(_hit(1, 30.0),), said=DISTINCT, given={1: 0.9})
    result = ask(house)
    assert (result.verdict, [one.image_id for one in result.donors]) == ("spliced", ["001"])


LOOSE: dict[str, Any] = {"hits": (_hit(1, 25.0), _hit(2, 12.0)), "explained": 0.3}
"""An original of which little is there."""


def test_an_original_that_gave_but_a_piece_is_a_donor() -> None:
    """A thing as large as half of the picture makes its donor look like the original, heavily edited."""
    house = House(**LOOSE, given={1: 0.9, 5: 0.2})
    result = ask(house)
    assert (result.verdict, result.confidence, result.original) == ("spliced", 0.9, None)
    assert [(one.image_id, one.shown) for one in result.donors] == [("001", True), ("005", False)]
    assert result.candidates[0].probabilities is not None
    assert house.regions is None
    assert house.calls == ["describe", "search objects", "verify"]


@pytest.mark.parametrize("seen", [0.2, None], ids=["too unlikely to be shown", "never found"])
def test_an_original_that_is_no_donor_stays_the_original(seen: float | None) -> None:
    house = House(**LOOSE, given={5: 0.9} | ({} if seen is None else {1: seen}))
    result = ask(house)
    usual = ask(replace(house, explained=1.0, calls=[]))
    assert (result.verdict, result.confidence, result.donors) == ("manipulated", usual.confidence, usual.donors)
    assert result.original is not None
    assert result.original.image_id == "001"
    assert house.query is not None
    assert house.query.exclude == (1, 2)


@given(st.floats(MATCH, 200), st.floats(0, 1))
def test_only_an_original_that_explains_little_may_be_a_piece(match: float, explained: float) -> None:
    result = ask(House(hits=(_hit(1, match),), explained=explained, given={1: 0.9}))
    little = match < verdict.PIECE_MATCH_MAX and explained < verdict.PIECE_EXPLAINED_MAX
    assert result.verdict == ("spliced" if little else "manipulated")


@pytest.mark.parametrize(
    ("house", "parameters"),
    [
        (House(**LOOSE, given={1: 0.9}), {"donors": 0}),
        (House(**LOOSE, said=BENIGN, given={1: 0.9}), {}),
        (House(**STRANGER, given={5: 0.9}), {"donors": 0}),
        (House(**CHANGED, said=BENIGN, given={5: 0.9}), {}),
        (House(**CHANGED, changed=np.s_[:0, :0], given={5: 0.9}), {}),
        (House(**CHANGED, given={5: 0.9}), {"rerank": 0}),
        (House(**STRANGER, featureless=True, given={5: 0.9}), {}),
    ],
    ids=[
        "piece, not asked for",
        "piece, benign",
        "not asked for",
        "benign",
        "nothing changed",
        "not compared",
        "featureless",
    ],
)
def test_no_donors_are_searched_for(house: House, parameters: dict[str, Any]) -> None:
    result = ask(house, **parameters)
    assert (house.calls, result.donors) == ([], ())
    assert result.verdict != "spliced"


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.integers(10, 40), st.floats(0, 1), max_size=20), st.integers(0, 20))
def test_at_most_so_many_come_the_likeliest_first(given_: dict[int, float], most: int) -> None:
    result = ask(House(**STRANGER, given=given_), donors=most)
    wanted = sorted(given_.items(), key=lambda one: (-one[1], one[0]))[:most]
    assert [one.image_id for one in result.donors] == [f"{row:03}" for row, _ in wanted]
    assert [one.shown for one in result.donors] == [probability >= SHOWN for _, probability in wanted]


@pytest.mark.parametrize(("damped_max", "verified"), [(9.0, 20), (-9.0, VERIFIED_FIRST)])
def test_nothing_is_fetched_of_hits_that_are_not_verified(damped_max: float, verified: int) -> None:
    """``House.verify`` holds copies to hits, and its donors are the hits that came to it."""
    card = replace(OBJECTS, damped_max=damped_max)
    result = ask(House(**STRANGER, given=dict.fromkeys(range(30), 0.1), card=card), donors=20)
    assert len(result.donors) == verified


def test_a_clone_is_a_donor_and_no_reason_for_a_verdict() -> None:
    result = ask(House(**CHANGED, copies=(_clone(0.95),), given={5: 0.9}))
    assert [(one.image_id, one.clone, one.shown) for one in result.donors] == [
        ("001", True, True),
        ("005", False, True),
    ]
    assert result.verdict == "manipulated"


def test_boxes_and_mask_are_in_pixels_of_the_full_size_query() -> None:
    mask_HW = np.zeros((30, 40), np.uint8)
    mask_HW[5:25, 10:30] = 255
    (donor,) = ask(House(**STRANGER, given={5: 0.9}, mask=((20, 40, 60, 70), mask_HW))).donors
    assert list(donor.query_box) == [60, 90, 100, 130]
    assert donor.mask is not None
    picture = Image.open(io.BytesIO(base64.b64decode(donor.mask)))
    assert (picture.size, picture.mode) == ((40, 40), "L")
    assert np.asarray(picture).min() == 255


def test_without_a_mask_the_box_is_the_objects() -> None:
    (donor,) = ask(House(**STRANGER, given={5: 0.9})).donors
    assert (donor.query_box, donor.mask) == ((20, 40, 60, 80), None)


@settings(deadline=None)
@given(st.tuples(*[st.floats(-5, 305)] * 4), st.integers(40, 900), st.integers(40, 900))
def test_a_box_at_full_size_is_whole_pixels_of_the_picture(edges: Any, width: int, height: int) -> None:
    pixels = Pixels(rgb_HWC=np.zeros((200, 300, 3), np.uint8), width=width, height=height, sha256="", format="PNG")
    x0, y0, x1, y1 = donors._full_size(edges, pixels)
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height


class Down(House):
    async def describe(self, pixels: Pixels, box_O4: Any) -> Described:
        raise Unavailable("no replica")


class Slow(House):
    async def verify(self, pixels: Pixels, described: Described, hits: Any, copies: Sequence[bytes]) -> list[Donor]:
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")


class Broken(House):
    async def verify(self, pixels: Pixels, described: Described, hits: Any, copies: Sequence[bytes]) -> list[Donor]:
        raise cv2.error("(-215:Assertion failed)")


@pytest.mark.parametrize("kind", [Down, Slow, Broken])
@pytest.mark.parametrize("about", [STRANGER, CHANGED])
def test_a_finder_that_fails_costs_the_donors_and_not_the_answer(kind: type[House], about: dict[str, Any]) -> None:
    result = ask(kind(**about, given={5: 0.9}, copies=(_clone(0.8),)), deadline_ms=300.0)
    without = ask(House(**about), donors=0)
    assert (result.verdict, result.confidence, result.candidates) == (
        without.verdict,
        without.confidence,
        without.candidates,
    )
    assert any(note.startswith(donors.UNTRACED) for note in result.notes)
    assert not any("Assertion" in note for note in result.notes)  # that is for the log
    assert all(one.clone for one in result.donors)  # what was found before it failed stands


@pytest.mark.parametrize(
    "partial", [{"missing_hosts": ("h",)}, {"images_searched": 5}, {"without_objects": 2}, {"notes": ("x",)}]
)
def test_a_partial_search_for_donors_is_said(partial: dict[str, Any]) -> None:
    result = ask(House(**STRANGER, given={5: 0.9}, found=partial))
    assert any(note.startswith(donors.UNTRACED) for note in result.notes)
    assert result.donors
    assert result.coverage.complete  # of the search by whole pictures


@pytest.mark.parametrize(("made_by", "note"), [(None, donors.NO_OBJECTS), ("others", donors.OTHER_OBJECTS)])
def test_objects_that_are_not_there_or_of_other_weights_load_nothing(made_by: str | None, note: str) -> None:
    house = House(**STRANGER, given={5: 0.9}, made_by=made_by)
    assert note in ask(house).notes
    assert house.calls == []


@pytest.mark.parametrize(("share", "searched"), [(0.6, False), (0.3, True)])
def test_a_region_that_a_copy_covers_is_searched_for_no_further(share: float, searched: bool) -> None:
    left, top, right, bottom = 75.0, 200 * 10 / 37, 225.0, 200 * 20 / 37
    copy = replace(_clone(0.9), query_box=(left, top, left + share * (right - left), bottom))
    house = House(**CHANGED, copies=(copy,), given={5: 0.9})
    ask(house)
    assert ("describe" in house.calls) is searched
