"""Objects of a partition: k means k distinct images, read when first asked for, in any order of arrival."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stemma.config import Settings
from stemma.errors import BadRequest, Corrupt
from stemma.flow import Found, HostReply, ObjectQuery, Objects, ShardQuery, Unit
from stemma.index import folder as folders
from stemma.index import objects as objects_room
from stemma.index.codec import Codec
from stemma.index.merge import donors
from stemma.index.object_set import ObjectSet, read_objects
from stemma.index.objects import ObjectBlock, ObjectNeed, nearest_images
from stemma.index.partition import Partition
from stemma.index.seal import maintain
from stemma.index.search import Need
from stemma.index.segment import Segment, verify_segments

MakeObjects = Callable[..., Objects]
NONE = np.empty(0, np.uint64)


def block(values: list[list[int]]) -> ObjectBlock:
    """Row i holds one object for each of ``values[i]``: a vector with this number in its first place."""
    stored = []
    for numbers in values:
        vector_OD = np.zeros((len(numbers), 256), np.int8)
        vector_OD[:, 0] = numbers
        box_O4, score_O = np.zeros((len(numbers), 4), np.float32), np.zeros(len(numbers), np.float32)
        stored.append(Objects(box_O4=box_O4, score_O=score_O, embedding_OD=vector_OD))
    return ObjectBlock(ObjectSet.of(np.arange(len(values), dtype=np.uint64), stored))


def found(
    held: ObjectBlock, images: int, live_M: NDArray[np.bool_] | None = None, exclude: NDArray[np.uint64] = NONE
) -> dict[int, float]:
    asked = ObjectNeed((Need(np.zeros((1, 256), np.int8), images),), images, exclude)
    live_M = np.ones(held.objects.count, bool) if live_M is None else live_M
    (nearest,) = nearest_images(held.exact, [asked], live_M)
    return dict(zip(nearest.row_C.tolist(), nearest.distance_C.tolist(), strict=True))


def test_many_near_objects_of_one_image_are_one_image() -> None:
    held = block([[1] * 200, [9], [2, 8], [7], [0] * 60])
    assert found(held, 1) == {4: 0.0}
    assert found(held, 3) == {4: 0.0, 0: 1.0, 2: 4.0}
    assert found(held, 50) == {4: 0.0, 0: 1.0, 2: 4.0, 3: 49.0, 1: 81.0}
    assert found(held, 2, exclude=np.array([4, 0], np.uint64)) == {2: 4.0, 3: 49.0}
    assert found(held, 2, live_M=held.objects.of_objects(np.array([False, True, True, True, False]))) == {
        2: 4.0,
        3: 49.0,
    }
    assert found(block([]), 3) == {}


def test_all_that_tie_at_the_cut_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects_room, "SLACK_ROWS", 0)
    tied = block([[1, 1, 5]] + [[3]] * 60)
    for images in (2, 4, 17):
        assert found(tied, images) == {0: 1.0, **dict.fromkeys(range(1, 61), 9.0)}


@pytest.fixture
def stored(catalog: Any, vectors: Callable[..., Any], objects_of: MakeObjects) -> Any:
    """40 images of 0, 1 or 2 objects in five commits."""
    for lo in range(0, 40, 8):
        some = [objects_of(row % 3, row) for row in range(lo, lo + 8)]
        catalog.commit(list(vectors(8, lo)), objects=some)
    catalog.refresh()
    return catalog


def opened(catalog: Any, root: Path, codec: Codec, settings: Settings, owns: Any = None) -> Partition:
    return Partition(catalog, root, settings, scale=360.0, codec=codec, owns=owns)


def same(one: HostReply, other: HostReply) -> bool:
    return one.hits == other.hits and one.without_objects == other.without_objects


def test_objects_are_read_when_first_asked_for_and_then_the_new_ones_alone(
    stored: Any,
    root: Path,
    codecs: dict[str, Codec],
    settings_with: Callable[..., Settings],
    object_question: Callable[..., ObjectQuery],
    question: Callable[..., ShardQuery],
    objects_of: MakeObjects,
    vectors: Callable[..., Any],
) -> None:
    partition = opened(stored, root, codecs["exact"], settings_with())
    partition.search([question(vectors(1, 0))])
    stored.scanned.clear()
    asked = object_question(objects_of(2, 77).embedding_OD[None])
    first, *mixed = partition.search([asked, question(vectors(1, 0)), asked])
    assert stored.scanned == [(0, 40)]
    assert (first.without_objects, first.images_searched, first.images_total) == (14, 40, 40)
    assert same(first, mixed[1]) and not hasattr(mixed[0].hits[0], "donor_box")
    stored.commit(list(vectors(3, 1)), objects=[objects_of(2, 77), objects_of(0, 0), objects_of(1, 5)])
    (after,) = partition.search([replace(asked, min_version=6)])
    assert stored.scanned[1:] == [(40, 43), (40, 43)], "once for images, once for objects"
    assert (after.hits[0].row, after.hits[0].refined_distance, after.without_objects) == (40, 0.0, 15)


def test_blocks_that_come_to_a_host_in_any_order_answer_as_if_they_had_always_been_there(
    stored: Any,
    root: Path,
    codecs: dict[str, Codec],
    settings_with: Callable[..., Settings],
    object_question: Callable[..., ObjectQuery],
    objects_of: MakeObjects,
) -> None:
    asked = object_question(objects_of(2, 9).embedding_OD[None], images=6)
    moving = opened(stored, root, codecs["exact"], settings_with(), owns=lambda unit: False)
    for owned in ({3}, {1, 3}, {0, 1, 2, 3, 4}, {0, 4}, {2}):

        def owns(unit: Unit, owned: set[int] = owned) -> bool:
            return unit.row_lo // 8 in owned

        moving.adopt(owns)
        fresh = opened(stored, root, codecs["exact"], settings_with(), owns=owns)
        assert same(moving.search([asked])[0], fresh.search([asked])[0])


@pytest.mark.parametrize("kind", ["exact", "paired"])
def test_sealed_merged_and_rewritten_objects_are_found_as_before(
    kind: str,
    stored: Any,
    root: Path,
    codecs: dict[str, Codec],
    paired: Codec,
    settings_with: Callable[..., Settings],
    object_question: Callable[..., ObjectQuery],
    objects_of: MakeObjects,
) -> None:
    codec = paired if kind == "paired" else codecs["exact"]
    settings = settings_with(tail_rows_max=8, merge_fanin=2, segment_rows_max=20, dead_share_max=0.1)
    partition = opened(stored, root, codec, settings)
    rows = [row for row in range(40) if row % 3]

    def assert_found(living: list[int]) -> None:
        for row in living[::4]:
            asked = object_question(objects_of(row % 3, row).embedding_OD[None], images=len(living))
            (reply,) = partition.search([asked])
            assert (reply.hits[0].row, reply.hits[0].refined_distance) == (row, 0.0)
            assert {hit.row for hit in reply.hits} == set(living)

    assert_found(rows)
    maintain(stored, root, codec, settings)
    partition.refresh()
    assert any(unit.kind == "segment" for unit in partition.units)
    assert_found(rows)
    stored.delete([1, 4, 5, 8, 20, 22])
    stored.drop([1, 4, 5, 8])
    maintain(stored, root, codec, settings)
    partition.refresh()
    assert_found([row for row in rows if row not in (1, 4, 5, 8, 20, 22)])
    assert verify_segments(root) == []


def test_joined_segments_hold_the_objects_that_would_have_been_built_at_once(
    stored: Any,
    root: Path,
    tmp_path: Path,
    paired: Codec,
    vectors: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(folders, "PIECE_ROWS", 4)
    rows, images = np.arange(40, dtype=np.uint64), vectors(40, 1)
    parts = [
        Segment.build(root, paired, rows[lo:hi], images[lo:hi], lo, hi, read_objects(stored, lo, hi))
        for lo, hi in ((0, 13), (13, 24), (24, 40))
    ]
    keep = rows[rows % 5 != 1]
    objects = read_objects(stored, 0, 40)
    whole = Segment.build(tmp_path / "other", paired, keep, images[keep.astype(int)], 0, 40, objects)
    assert Segment.join(root, paired, parts, keep).id == whole.id
    assert whole.coded_objects is not None and (whole.folder / "object_codes.u8").stat().st_size == 32 * len(
        whole.coded_objects
    )
    for path in sorted(whole.folder.glob("object_*")):
        body = path.read_bytes()
        path.write_bytes(body[:-1] + bytes([body[-1] ^ 1]))
        with pytest.raises(Corrupt):
            Segment.open(whole.folder, paired, verify=True)
        path.write_bytes(body)
    Segment.open(whole.folder, paired, verify=True)


def test_a_segment_from_before_objects_is_what_it_was(codecs: dict[str, Codec], root: Path, vectors: Any) -> None:
    segment = Segment.build(root, codecs["opq"], np.arange(9, dtype=np.uint64), vectors(9, 0), 0, 9)
    assert not list(segment.folder.glob("object_*")) and segment.objects.count == 0


def test_objects_of_other_weights_are_not_looked_for_among_codes(
    stored: Any,
    root: Path,
    paired: Codec,
    settings_with: Callable[..., Settings],
    object_question: Callable[..., ObjectQuery],
    objects_of: MakeObjects,
) -> None:
    partition = opened(stored, root, paired, settings_with())
    with pytest.raises(BadRequest, match="scale"):
        partition.search([object_question(objects_of(1, 1).embedding_OD[None], scale=199.0)])


def test_a_pair_of_codecs_is_known_by_both(codecs: dict[str, Codec], paired: Codec) -> None:
    assert paired.objects is not None and paired.objects.code_bytes == 32
    kind, digest = paired.objects.id.split("-")
    assert (kind, paired.id) == ("objects", f"{codecs['opq'].id}.{digest}")


@pytest.mark.parametrize(
    "wrong",
    [
        {"objects_VOD": np.zeros((1, 0, 256), np.int8)},
        {"objects_VOD": np.zeros((2, 256), np.int8)},
        {"objects_VOD": np.zeros((1, 1, 256), np.float32)},
        {"images": 0},
        {"scale": 0.0},
    ],
)
def test_what_cannot_be_asked(wrong: dict[str, Any], object_question: Callable[..., ObjectQuery]) -> None:
    with pytest.raises(ValueError, match=r"int8|wanted"):
        object_question(**{"objects_VOD": np.zeros((1, 1, 256), np.int8), **wrong})


def test_the_last_cut_is_of_hits_by_objects() -> None:
    empty = Found(hits=(), images_searched=0, images_total=0, missing_hosts=(), seq=0, nprobe=0, codec="exact")
    assert donors(empty, 3) == ()
