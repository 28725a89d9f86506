"""Segments: immutable, content-addressed, and never believed when a byte has changed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stemma.errors import Corrupt
from stemma.flow import Unit
from stemma.index.codec import Codec
from stemma.index.folder import TEMPORARY
from stemma.index.segment import FOLDER, Name, Segment, chosen, segment_set, verify_segments

KINDS = ["exact", "opq", "paper"]


@pytest.fixture
def stored(vectors: Callable[..., Any]) -> Any:
    return vectors(90, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_segment_holds_its_rows_in_list_order_whatever_order_they_came_in(
    kind: str, codecs: dict[str, Codec], stored: Any, root: Path, tmp_path: Path
) -> None:
    codec, rows = codecs[kind], np.arange(10, 100, dtype=np.uint64)
    segment = Segment.build(root, codec, rows, stored, 8, 104)
    shuffled = np.random.default_rng(0).permutation(90)
    other = Segment.build(tmp_path / "other", codec, rows[shuffled], stored[shuffled], 8, 104)
    assert other.id == segment.id == Segment.open(segment.folder, codec, verify=True).id
    assert (segment.unit, len(segment)) == (Unit(8, 104, "segment"), 90)
    assert (segment.vectors_ND == stored[segment.row_N.astype(int) - 10]).all()
    if codec.exact:
        assert segment.codes_NB is None and segment.start_L.tolist() == [0, 90]
        return
    lists, codes = codec.encode(segment.vectors_ND)
    assert (np.repeat(np.arange(codec.nlist), np.diff(segment.start_L)) == lists).all()
    assert segment.codes_NB is not None and (segment.codes_NB == codes).all()
    assert (segment.folder / "codes.u8").stat().st_size == 16 * 90, "16.00 bytes an image"
    for start, stop in zip(segment.start_L[:-1], segment.start_L[1:], strict=True):
        assert (np.diff(segment.row_N[start:stop].astype(int)) > 0).all(), "by row within a list"


@pytest.mark.parametrize("kind", KINDS)
def test_joined_segments_are_what_would_have_been_built_at_once(
    kind: str, codecs: dict[str, Codec], stored: Any, root: Path, tmp_path: Path
) -> None:
    codec, rows = codecs[kind], np.arange(90, dtype=np.uint64)
    parts = [Segment.build(root, codec, rows[at : at + 30], stored[at : at + 30], at, at + 30) for at in (0, 30, 60)]
    keep = rows[rows % 4 != 1]
    joined = Segment.join(root, codec, parts, keep)
    whole = Segment.build(tmp_path / "other", codec, keep, stored[keep.astype(int)], 0, 90)
    assert joined.id == whole.id


@pytest.mark.parametrize("kind", ["exact", "opq"])
def test_every_changed_torn_or_missing_file_is_noticed(
    kind: str, codecs: dict[str, Codec], stored: Any, root: Path
) -> None:
    codec = codecs[kind]
    segment = Segment.build(root, codec, np.arange(90, dtype=np.uint64), stored, 0, 90)
    assert verify_segments(root) == []
    for path in sorted(segment.folder.iterdir()):
        body = path.read_bytes()
        for at in {0, len(body) // 2, len(body) - 1}:
            path.write_bytes(body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :])
            with pytest.raises(Corrupt):
                Segment.open(segment.folder, codec, verify=True)
            (problem,) = verify_segments(root)
            assert segment.id in problem
        for torn in (body[:-1], None):
            path.write_bytes(torn) if torn is not None else path.unlink()
            with pytest.raises(Corrupt):
                Segment.open(segment.folder, codec, verify=False)
        path.write_bytes(body)
    Segment.open(segment.folder, codec, verify=True)


def test_a_segment_of_another_codec_is_not_opened(codecs: dict[str, Codec], stored: Any, root: Path) -> None:
    segment = Segment.build(root, codecs["opq"], np.arange(90, dtype=np.uint64), stored, 0, 90)
    with pytest.raises(Corrupt, match="no segment under codec"):
        Segment.open(segment.folder, codecs["paper"], verify=False)
    assert segment_set(root, codecs["paper"]) == ()
    assert segment_set(root, codecs["opq"]) == (segment.unit,)


def test_rows_outside_the_range_or_twice_are_refused(codecs: dict[str, Codec], stored: Any, root: Path) -> None:
    rows = np.arange(90, dtype=np.uint64)
    for bad, lo, hi in ((rows, 0, 89), (rows, 1, 90), (rows // 2, 0, 90), (rows[:0], 5, 5)):
        with pytest.raises(ValueError, match="a segment of rows"):
            Segment.build(root, codecs["exact"], bad, stored[: len(bad)], lo, hi)
    assert not list((root / FOLDER).glob("*"))


def test_a_segment_without_rows_keeps_its_range(codecs: dict[str, Codec], stored: Any, root: Path) -> None:
    for codec in codecs.values():
        empty = Segment.build(root, codec, np.empty(0, np.uint64), stored[:0], 5, 9)
        assert len(Segment.open(empty.folder, codec, verify=True)) == 0
        assert segment_set(root, codec) == (Unit(5, 9, "segment"),)


def test_what_a_crash_left_is_no_segment_and_is_reported(codecs: dict[str, Codec], root: Path) -> None:
    (root / FOLDER / f"{TEMPORARY}abc").mkdir(parents=True)
    assert segment_set(root, codecs["exact"]) == ()
    (problem,) = verify_segments(root)
    assert "left by a crash" in problem
    assert verify_segments(root / "nothing here") == []


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 15)), max_size=12))
def test_of_overlapping_segments_the_larger_wins_and_no_row_is_answered_twice(spans: list[tuple[int, int]]) -> None:
    found = [Name(lo, lo + length, "exact", f"{at:016x}") for at, (lo, length) in enumerate(spans)]
    kept = chosen(found)
    assert kept == sorted(kept) and kept == chosen(found[::-1])
    assert all(a.row_hi <= b.row_lo for a, b in itertools.pairwise(kept))
    for name in set(found) - set(kept):
        winners = [one for one in kept if one.row_lo < name.row_hi and name.row_lo < one.row_hi]
        assert max(one.row_hi - one.row_lo for one in winners) >= name.row_hi - name.row_lo


@given(st.text(alphabet="0123456789-abexct.", max_size=80))
def test_a_name_is_read_as_it_was_written_or_not_at_all(text: str) -> None:
    name = Name.parse(text)
    assert name is None or name.text == text
    made = Name(3, 2**64 - 1, "opq-0123456789abcdef", "fedcba9876543210")
    assert Name.parse(made.text) == made
