"""The arrays behind a catalog: lookups against a dictionary, snapshots that never change, memory a row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stemma.catalog.encoding import Identities
from stemma.catalog.ledger import HashIndex, Ledger
from stemma.catalog.schema import FOREVER
from stemma.errors import BadRequest


def _rows(first: int, count: int, seq: int, keys: int) -> Identities:
    rng = np.random.default_rng(first)
    row_R = np.arange(first, first + count, dtype=np.uint64)
    key_R = rng.integers(0, keys, count, dtype=np.uint64)
    return Identities(row_R, np.full(count, seq, np.uint64), key_R, rng.integers(0, 2**63, count, dtype=np.uint64))


def _kill(ledger: Ledger, *ends: tuple[int, int]) -> None:
    at_N, seq_N = zip(*ends, strict=True)
    ledger.kill(np.array(at_N), np.array(seq_N, np.uint64))


@given(batches=st.lists(st.lists(st.integers(0, 6), max_size=8), max_size=6), tail=st.sampled_from([0, 3, 4096]))
def test_an_index_finds_what_a_dictionary_finds(batches: list[list[int]], tail: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stemma.catalog.ledger._TAIL_MIN", tail)
        index, seen = HashIndex(), []
        for batch in batches:
            before = len(seen)
            seen += batch
            index.extend(np.array(batch, np.uint64))
            assert len(index) == len(seen)
            for value in range(7):
                assert index.find(value).tolist() == [at for at, one in enumerate(seen) if one == value]
            groups = {tuple(group.tolist()) for group in index.groups(before)}
            same = [[at for at, one in enumerate(seen) if one == value] for value in set(batch)]
            assert groups == {tuple(group) for group in same if len(group) > 1}


def test_at_most_64_bytes_a_row_whatever_the_way_it_grew() -> None:
    whole, grown = Ledger(), Ledger()
    whole.extend(_rows(0, 300_000, 1, 2**63))
    for first in range(0, 300_000, 7_500):
        grown.extend(_rows(first, 7_500, 1, 2**63))
    assert whole.bytes_per_row() <= 56
    assert grown.bytes_per_row() <= 64


def test_a_snapshot_never_changes() -> None:
    ledger = Ledger()
    ledger.extend(_rows(0, 10, 1, 2**63))
    first = ledger.snapshot(1, 0)
    _kill(ledger, (3, 2))
    _kill(ledger, (3, 5))  # the earlier end holds, in whatever order they are learnt
    second = ledger.snapshot(2, 0)
    ledger.extend(_rows(10, 5_000, 3, 2**63))
    _kill(ledger, (0, 4), (0, 3), (1, 4))
    third = ledger.snapshot(4, 2)
    assert (first.count(), second.count(), third.count()) == (10, 9, 5_007)
    assert first.deleted_R.tolist() == [FOREVER] * 10
    assert second.deleted_R[3] == 2 and third.deleted_R[:4].tolist() == [3, 4, FOREVER, 2]
    assert [third.count(as_of) for as_of in (2, 3, 10**9)] == [9, 5_008, 5_007]
    assert not third.live(2)[3]
    with pytest.raises(BadRequest, match="before version 2"):
        third.live(1)
    with pytest.raises(ValueError, match="read-only"):
        first.row_R[0] = 1


def test_row_numbers_beyond_32_bits() -> None:
    ledger = Ledger()
    ledger.extend(_rows(2**32 - 2, 5, 2**33, 2**63))
    assert ledger.positions(np.array([2**32 + 2, 2**32 - 2, 2, 2**32 + 3], np.uint64)).tolist() == [4, 0, -1, -1]
    assert ledger.snapshot(2**33, 0).row_R[-1] == 2**32 + 2
    with pytest.raises(AssertionError, match="rows go up"):
        ledger.extend(_rows(7, 1, 2**33, 2**63))
