"""Which rows count: masks follow commits, compactions and a catalog that moves while it is asked."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stemma.config import LimitSettings
from stemma.errors import Unavailable
from stemma.index.live import Live, LiveCache, Places, Question, count_by_list

rows = st.lists(st.integers(0, 40), unique=True, max_size=25).map(sorted)


@given(first=rows, second=rows, held=st.lists(st.integers(0, 45), unique=True, max_size=20))
def test_a_row_is_placed_where_it_stands_now_whatever_was_known_before(
    first: list[int], second: list[int], held: list[int]
) -> None:
    places, held_N = Places(), np.array(held, np.uint64)
    for snapshot in (first, second, sorted({*second, 50, 60})):  # compacted or other rows; then two appended
        row_R = np.array(snapshot, np.uint64)
        places.move_to(row_R)
        expected = [snapshot.index(row) if row in snapshot else -1 for row in held]
        assert places.of("segment", held_N).tolist() == expected


@given(first=rows, dead=st.sets(st.integers(0, 40)), held=st.lists(st.integers(0, 45), unique=True, max_size=20))
def test_a_row_that_the_catalog_does_not_hold_is_dead(first: list[int], dead: set[int], held: list[int]) -> None:
    places = Places()
    places.move_to(np.array(first, np.uint64))
    live = Live(np.array([row not in dead for row in first], bool), places)
    mask = live.mask("segment", np.array(held, np.uint64))
    assert mask.tolist() == [row in first and row not in dead for row in held]
    assert live.total == len(set(first) - dead)


@given(counts=st.lists(st.integers(0, 6), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_live_rows_are_counted_per_list(counts: list[int], seed: int) -> None:
    live = np.random.default_rng(seed).random(sum(counts)) < 0.5
    start = np.concatenate([[0], np.cumsum(counts)])
    expected = [int(live[lo:hi].sum()) for lo, hi in itertools.pairwise(start)]
    assert count_by_list(live, start).tolist() == expected


def test_a_filter_is_aligned_with_our_commit_though_the_catalog_is_ahead_or_compacted(
    catalog: Any, vectors: Callable[..., Any]
) -> None:
    catalog.commit(list(vectors(20, 1)))
    catalog.refresh()
    ours, question = catalog.snapshot(), Question("shelf = 2", None)
    expected = [catalog.rows[row]["metadata"]["shelf"] == 2 for row in range(20)]
    catalog.commit(list(vectors(20, 1)))
    catalog.refresh()

    def mask() -> list[bool]:
        places = Places()
        places.move_to(ours.row_R)
        live = LiveCache(4, LimitSettings()).get(question, ours, catalog, places)
        return live.mask("all", ours.row_R).tolist()

    assert mask() == expected
    catalog.drop([0, 5, 9])
    catalog.refresh()
    assert mask() == [passes and row not in (0, 5, 9) for row, passes in enumerate(expected)]


def test_a_catalog_that_never_stands_still_is_not_waited_for(catalog: Any, vectors: Callable[..., Any]) -> None:
    catalog.commit(list(vectors(20, 1)))
    catalog.refresh()
    ours, matching = catalog.snapshot(), catalog.matching

    def moving(condition: Any) -> Any:
        found = matching(condition)
        catalog.commit(list(vectors(1, 1)))
        catalog.refresh()
        return found

    catalog.matching = moving
    with pytest.raises(Unavailable, match="ask again"):
        LiveCache(4, LimitSettings()).get(Question("shelf = 2", None), ours, catalog, Places())
