"""The tail: what is committed and not yet sealed, each row read once, only where it is served."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stemma.flow import Unit
from stemma.index.tail import ImageBlock, Tail, tail_units


def test_a_block_keeps_its_name_while_it_fills() -> None:
    assert tail_units(0, 0, 8) == ()
    assert tail_units(0, 1, 8) == tail_units(0, 8, 8) == (Unit(0, 8, "tail"),)
    assert tail_units(5, 17, 8) == (Unit(5, 8, "tail"), Unit(8, 16, "tail"), Unit(16, 24, "tail"))


@given(lo=st.integers(0, 60), length=st.integers(0, 60), block=st.integers(1, 20))
def test_blocks_cover_every_row_once(lo: int, length: int, block: int) -> None:
    units = tail_units(lo, lo + length, block)
    covered = [row for unit in units for row in range(unit.row_lo, unit.row_hi)]
    assert covered == sorted(set(covered))
    assert set(range(lo, lo + length)) <= set(covered)
    assert all(row >= lo for row in covered)


steps = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 10), st.integers(0, 7)), min_size=1, max_size=8)


@given(steps=steps)
def test_it_holds_exactly_the_owned_rows_whatever_happened_before(
    steps: list[tuple[int, int, int]], vectors: Callable[..., Any], new_catalog: Callable[[], Any]
) -> None:
    catalog, tail, sealed = new_catalog(), Tail(8, ImageBlock()), 0
    pool = vectors(30, 1)
    for new, seal, owner in steps:  # owner: which residues of a block's number are owned
        catalog.commit([pool[(catalog.next_row + at) % 30] for at in range(new)], skip=new % 3)
        sealed = min(sealed + seal, catalog.next_row)

        def owns(unit: Unit, owner: int = owner) -> bool:
            return (owner >> (unit.row_lo // 8 % 3)) & 1 == 1

        tail.update(catalog, sealed, catalog.next_row, owns)
        held = [row for row in catalog.rows if row >= sealed and (owner >> (row // 8 % 3)) & 1]
        assert sorted(tail.block.row_N.tolist()) == held
        vectors_ND = tail.block.vectors_at(np.arange(len(tail)))
        for row, vector in zip(tail.block.row_N.tolist(), vectors_ND, strict=True):
            assert (vector == catalog.rows[row]["embedding"]).all()
        assert tail.units == tuple(unit for unit in tail_units(sealed, catalog.next_row, 8) if owns(unit))


def test_a_commit_reads_the_new_rows_alone(vectors: Callable[..., Any], catalog: Any) -> None:
    tail, pool = Tail(8, ImageBlock()), vectors(40, 1)
    catalog.commit(list(pool[:13]))
    tail.update(catalog, 0, 13, lambda unit: True)
    catalog.commit(list(pool[13:20]))
    tail.update(catalog, 0, 20, lambda unit: True)
    tail.update(catalog, 5, 20, lambda unit: True)
    assert catalog.scanned == [(0, 13), (13, 20)]
    kept = tail.unit_mask(frozenset({Unit(8, 16, "tail")}))
    assert tail.block.row_N[kept].tolist() == list(range(8, 16))
