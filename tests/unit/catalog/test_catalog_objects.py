"""Objects of a row: at most eight and the whole picture, under one checksum, read back in bulk."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stemma.catalog import journal
from stemma.catalog.catalog import Catalog
from stemma.catalog.encoding import Numbered, RowMismatch, decode, encode
from stemma.catalog.schema import Draft
from stemma.errors import Conflict
from stemma.flow import OBJECTS_MAX, Objects

MakeDraft = Callable[..., Draft]
ASKED = ["row", "objects"]


def objects_of(count: int, seed: int) -> Objects:
    """``count`` boxes and the whole picture."""
    rng = np.random.default_rng((count, seed))
    corner_O22 = np.sort(rng.random((count, 2, 2), np.float32), axis=1)
    box_O4 = np.concatenate([corner_O22.reshape(count, 4), [[0, 0, 1, 1]]]).astype(np.float32)
    score_O = rng.random(count + 1, np.float32)
    return Objects(
        box_O4=box_O4, score_O=score_O, embedding_OD=rng.integers(-127, 128, (count + 1, 256), dtype=np.int8)
    )


def plain(objects: Objects | None) -> list[Any]:
    if objects is None:
        return [[], [], []]
    return [objects.box_O4.tolist(), objects.score_O.tolist(), objects.embedding_OD.tolist()]


def table_of(draft: MakeDraft, found_R: list[Objects | None]) -> pa.Table:
    drafts = [draft(f"objects {at}", objects=found) for at, found in enumerate(found_R)]
    numbered = [Numbered(row, str(row), one, {}, None) for row, one in enumerate(drafts)]
    return encode(numbered, 1, {})


@given(counts=st.lists(st.none() | st.integers(0, OBJECTS_MAX), min_size=1, max_size=6), cut=st.integers(0, 5))
def test_any_row_comes_back_to_the_bit_also_from_the_middle_of_a_table(
    counts: list[int | None], cut: int, draft: MakeDraft
) -> None:
    found_R = [None if count is None else objects_of(count, at) for at, count in enumerate(counts)]
    table = table_of(draft, found_R)
    cut = min(cut, len(counts) - 1)
    for part, wanted in ((table, found_R), (table.slice(cut), found_R[cut:]), (table.slice(0, 0), [])):
        read = decode(part, ASKED, {}, "w1", "o1")["objects"]
        assert [plain(one) for one in read] == [plain(one) for one in wanted]
        assert all(one.embedding_OD.dtype == np.int8 and one.box_O4.dtype == np.float32 for one in read)


def test_commits_compaction_and_dead_rows_change_nothing(catalog: Catalog, draft: MakeDraft) -> None:
    found_R = [None if at % 5 == 2 else objects_of(at % (OBJECTS_MAX + 1), at) for at in range(24)]
    for lo in range(0, 24, 6):
        catalog.commit([draft(at, f"id{at}", objects=found_R[at]) for at in range(lo, lo + 6)])
    catalog.delete(["id3", "id9"])
    catalog.compact(fragment_rows=16)
    rows = np.array([23, 0, 3, 2, 17], np.uint64)
    read = catalog.read(rows, ["objects", "image_id"])
    assert [plain(one) for one in read["objects"]] == [plain(found_R[row]) for row in rows.tolist()]
    scanned = [pair for batch in catalog.scan(ASKED, rows=(4, 20)) for pair in zip(*batch.values(), strict=True)]
    assert [int(row) for row, _ in scanned] == list(range(4, 20))
    assert [plain(one) for _, one in scanned] == [plain(found_R[row]) for row in range(4, 20)]


@pytest.mark.parametrize("member", ["box", "score", "embedding", "count", "order"])
def test_every_number_of_an_object_is_under_the_checksum(member: str, draft: MakeDraft) -> None:
    table = table_of(draft, [objects_of(1, 0), objects_of(3, 1), None])
    values = table["objects"].to_pylist()
    one = values[1][2]
    match member:
        case "box" | "embedding":
            one[member][-1] = one[member][-1] / 2 if member == "box" else one[member][-1] ^ 1
        case "score":
            one["score"] += 1e-3
        case "count":
            values[1].pop()
        case _:
            values[1].reverse()
    field = table.schema.field("objects")
    changed = table.set_column(table.schema.get_field_index("objects"), field, pa.array(values, field.type))
    with pytest.raises(RowMismatch) as caught:
        decode(changed, ASKED, {}, "w1", "o1")
    assert (caught.value.position, caught.value.group) == (1, "objects")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"box_O4": np.zeros((3, 4), np.float32)}, "x0 < x1"),
        ({"box_O4": np.array([[0.5, 0, 1.5, 1], [0, 0, 1, 1], [0, 0, 1, 1]], np.float32)}, "in 0..1"),
        ({"box_O4": np.full((3, 4), np.nan, np.float32)}, "x0 < x1"),
        ({"box_O4": np.array([[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 0.5]], np.float32)}, "whole picture"),
        ({"box_O4": np.array([[0, 0, 1, 1]] * 2, np.float32)}, "float32"),
        ({"embedding_OD": np.zeros((3, 256), np.float32)}, "int8"),
        ({"embedding_OD": np.zeros((3, 128), np.int8)}, "int8"),
        ({"score_O": np.zeros(3, np.float64)}, "float32"),
        ({"score_O": np.zeros(0, np.float32)}, "at most"),
        ({"score_O": np.zeros(OBJECTS_MAX + 2, np.float32)}, "at most"),
    ],
)
def test_objects_of_the_wrong_shape_are_refused(draft: MakeDraft, wrong: dict[str, Any], told: str) -> None:
    good = objects_of(2, 0)
    parts = {"box_O4": good.box_O4, "score_O": good.score_O, "embedding_OD": good.embedding_OD, **wrong}
    with pytest.raises(ValueError, match=told):
        draft("x", objects=Objects(**parts))


def test_objects_of_other_weights_are_refused(catalog: Catalog, draft: MakeDraft) -> None:
    found = objects_of(2, 0)
    catalog.commit([draft(0, "id0")])
    assert catalog.objects_weights is None
    catalog.commit([draft(1, "id1", objects=found)])
    with pytest.raises(Conflict, match=r"o1.*o2.*--reencode"):
        catalog.commit([draft(2, "id2", objects=found, objects_weights="o2")])
    with pytest.raises(Conflict, match="objects"):
        catalog.commit([draft(n, objects=found, objects_weights=f"o{n}") for n in range(2)])
    # pictures that nobody looked at go with any
    catalog.commit([draft(3, "id3")])
    catalog.compact(retain_s=0, keep_versions_s=0)
    assert (catalog.objects_weights, catalog.seq) == ("o1", 3)
    assert [len(one) for one in catalog.read([0, 1, 2], ["objects"])["objects"]] == [0, len(found), 0]
    assert Catalog.open(catalog.url).objects_weights == "o1"


def test_objects_do_not_pass_as_those_of_other_weights(draft: MakeDraft) -> None:
    table = table_of(draft, [None, objects_of(1, 0)])
    assert [len(one) for one in decode(table, ASKED, {}, "w1", "o1")["objects"]] == [0, 2]
    for objects_weights in ("o2", None):
        with pytest.raises(RowMismatch, match="objects") as caught:
            decode(table, ASKED, {}, "w1", objects_weights)
        assert caught.value.position == 1


@pytest.mark.parametrize(("found", "made_by"), [(None, "o1"), (objects_of(1, 0), None)])
def test_objects_come_with_their_weights(draft: MakeDraft, found: Objects | None, made_by: str | None) -> None:
    with pytest.raises(ValueError, match="digest"):
        draft("x", objects=found, objects_weights=made_by)


def test_a_journal_of_before_objects_opens(catalog: Catalog, draft: MakeDraft) -> None:
    """Its entries lack the field; what follows them has it."""
    catalog.commit([draft(0, "id0")])
    path = Path(catalog.url) / journal.NAME
    header, *lines = path.read_bytes().splitlines(keepends=True)
    bodies = [line.partition(b" ")[2].rstrip(b"\n").replace(b',"objects_weights":null', b"") for line in lines]
    assert not any(b"objects_weights" in body for body in bodies)
    path.write_bytes(header + b"".join(b"%08x %s\n" % (zlib.crc32(body), body) for body in bodies))
    catalog.close()
    with Catalog.open(catalog.url, write=True) as again:
        assert again.objects_weights is None and len(again) == 1
        again.commit([draft(1, "id1", objects=objects_of(1, 0))])
        assert again.objects_weights == "o1"
