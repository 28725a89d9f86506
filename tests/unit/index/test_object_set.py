"""Objects of many rows: what goes in comes out, whichever parts it is made of; and the nearest pair of all."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stemma.flow import Objects
from stemma.index.object_set import NO_OBJECTS, ObjectSet, nearest_pairs, read_objects

MakeObjects = Callable[..., Objects]


def contents(found: ObjectSet) -> dict[int, list[Any]]:
    edges = found.start_I.tolist()
    return {
        int(row): [found.box_M4[lo:hi].tolist(), found.vector_MD[lo:hi].tolist()]
        for row, lo, hi in zip(found.row_I, edges[:-1], edges[1:], strict=True)
    }


def wanted(row_R: list[int], objects_R: list[Objects]) -> dict[int, list[Any]]:
    both = zip(row_R, objects_R, strict=True)
    return {row: [one.box_O4.tolist(), one.embedding_OD.tolist()] for row, one in both if len(one)}


@given(
    counts=st.lists(st.integers(0, 9), max_size=12),
    cuts=st.lists(st.integers(0, 12), max_size=3),
    kept=st.integers(0, 2**12 - 1),
)
def test_a_set_is_the_same_of_any_parts_and_keeps_what_it_is_told(
    counts: list[int], cuts: list[int], kept: int, objects_of: MakeObjects
) -> None:
    row_R = [3 * at + at % 2 for at in range(len(counts))]
    objects_R = [objects_of(count, at) for at, count in enumerate(counts)]
    edges = [0, *sorted(min(cut, len(counts)) for cut in cuts), len(counts)]
    parts = [ObjectSet.of(np.array(row_R[lo:hi], np.uint64), objects_R[lo:hi]) for lo, hi in itertools.pairwise(edges)]
    whole = ObjectSet.join(parts)
    assert contents(whole) == wanted(row_R, objects_R)
    assert whole.count == sum(counts)
    keep = [row for at, row in enumerate(row_R) if kept >> at & 1]
    some = whole.only(np.isin(whole.row_I, np.array(keep, np.uint64)))
    assert contents(some) == {row: one for row, one in contents(whole).items() if row in keep}
    at_M = np.arange(whole.count)
    assert whole.rows_at(at_M).tolist() == whole.of_objects(whole.row_I).tolist()
    asked = np.arange(40, dtype=np.uint64)
    assert [(row, place) for row, place in enumerate(whole.find(asked).tolist()) if place >= 0] == [
        (row, place) for place, row in enumerate(whole.row_I.tolist())
    ]


def test_parts_out_of_order_are_our_own_fault(objects_of: MakeObjects) -> None:
    parts = [ObjectSet.of(np.array([row], np.uint64), [objects_of(2, row)]) for row in (5, 3)]
    with pytest.raises(AssertionError, match="order of their rows"):
        ObjectSet.join(parts)
    assert NO_OBJECTS.count == 0 and NO_OBJECTS.find(np.array([1], np.uint64)).tolist() == [-1]


def test_reading_a_catalog_takes_the_rows_of_the_range(catalog: Any, objects_of: MakeObjects, vectors: Any) -> None:
    stored = [objects_of(at % 4, at) for at in range(120)]
    catalog.commit(list(vectors(120, 0)), objects=stored)
    assert contents(read_objects(catalog, 30, 90)) == wanted(list(range(30, 90)), stored[30:90])
    assert read_objects(catalog, 90, 90).count == 0


@given(seed=st.integers(0, 2**32 - 1), values=st.sampled_from([1, 2, 127]), views=st.sampled_from([1, 2]))
def test_the_nearest_pair_is_the_first_of_all_pairs_by_plain_integers(seed: int, values: int, views: int) -> None:
    """eq. 7 and 8 in four loops; with few values pairs tie all the time."""
    rng = np.random.default_rng(seed)
    query = rng.integers(-values - 1, values + 1, (views, int(rng.integers(1, 5)), 256)).astype(np.int8)
    objects_R = [
        Objects(
            box_O4=rng.random((count, 4), np.float32),
            score_O=np.ones(count, np.float32),
            embedding_OD=rng.integers(-values - 1, values + 1, (count, 256)).astype(np.int8),
        )
        for count in rng.integers(1, 6, 4).tolist()
    ]
    objects_R[0].embedding_OD[-1] = query[-1, 0]
    found = ObjectSet.of(np.arange(4, dtype=np.uint64), objects_R)
    for place, pair in zip((2, 0, 3, 1), nearest_pairs(query, found, np.array([2, 0, 3, 1])), strict=True):
        stored = objects_R[place].embedding_OD.astype(int)
        every = [
            (int(((query[v, i].astype(int) - stored[j]) ** 2).sum()), i, j, v)
            for i in range(query.shape[1])
            for j in range(len(stored))
            for v in range(views)
        ]
        distance, i, j, v = min(every)
        assert pair[:4] == (distance, i, j, v > 0)
        assert pair.donor_box == tuple(objects_R[place].box_O4[j].tolist())


def test_the_largest_distance_there_can_be_is_exact() -> None:
    far = Objects(
        box_O4=np.array([[0, 0, 1, 1]], np.float32),
        score_O=np.ones(1, np.float32),
        embedding_OD=np.full((1, 256), 127, np.int8),
    )
    found = ObjectSet.of(np.zeros(1, np.uint64), [far])
    (pair,) = nearest_pairs(np.full((1, 1, 256), -128, np.int8), found, np.array([0]))
    assert pair.distance == 256 * 255**2
