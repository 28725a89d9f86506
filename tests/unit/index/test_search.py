"""Fast scans against a naive integer twin, to the bit; short lists are never returned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stemma.index.codec import Codec
from stemma.index.search import Candidates, ExactBlock, Need, Stack, lists_to_probe, nearest, nearest_ids, refine
from stemma.index.segment import Segment


def naive(views_VD: NDArray[np.int8], vectors_ND: NDArray[np.int8]) -> list[int]:
    """Smallest squared distance of each vector over the views, in plain 64-bit integers."""
    difference = vectors_ND.astype(np.int64)[None] - views_VD.astype(np.int64)[:, None]
    return [int(value) for value in (difference**2).sum(axis=2).min(axis=0)]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(0, 120),
    wanted=st.integers(1, 130),
    views=st.sampled_from([1, 2]),
    span=st.sampled_from([1, 8, 128]),
    live=st.sampled_from([0.0, 0.05, 0.7, 1.0]),
)
def test_an_exact_block_equals_plain_integers(
    seed: int, rows: int, wanted: int, views: int, span: int, live: float
) -> None:
    rng = np.random.default_rng(seed)
    # span 1 gives {-1, 0}: many ties; span 128 takes in -128, whose distances are the largest there are.
    vectors = rng.integers(-span, span, (rows, 256)).astype(np.int8)
    if span == 1:
        vectors[:, 3:] = 0
    asked = rng.integers(-span, span, (views, 256)).astype(np.int8)
    alive = rng.random(rows) < live
    block = ExactBlock()
    for part in np.array_split(np.arange(rows), 3):  # it grows at its end
        block.add(part.astype(np.uint64), vectors[part])
    (found,) = nearest(block, [Need(asked, wanted)], alive)

    every = sorted((distance, row) for row, distance in enumerate(naive(asked, vectors)) if alive[row])
    cut = every[wanted - 1][0] if len(every) >= wanted else float("inf")
    expected = {(row, distance) for distance, row in every if distance <= cut}
    assert set(zip(found.row_C.tolist(), found.distance_C.tolist(), strict=True)) == expected
    assert (found.vectors_CD == vectors[found.row_C.astype(int)]).all()
    assert refine(asked, found.vectors_CD)[0].tolist() == found.distance_C.tolist()


def test_extreme_vectors_stay_exact_in_float32() -> None:
    low, high = np.full((1, 256), -128, np.int8), np.full((1, 256), 127, np.int8)
    block = ExactBlock()
    block.add(np.array([4], np.uint64), low)
    (found,) = nearest(block, [Need(high, 1)], np.ones(1, bool))
    assert found.distance_C.tolist() == [256 * 255**2] == refine(high, low)[0].tolist()
    assert 256 * 255**2 < 2**24


class Recorded:
    """A source that counts how deep it was scanned, and returns dead rows as an id-less scan does."""

    def __init__(self, distances: Sequence[float]) -> None:
        self.order = np.argsort(distances, kind="stable")
        self.distances = np.asarray(distances, np.float32)
        self.depths: list[int] = []

    def scan(self, needs: Sequence[Need], depth: int, live_N: Any) -> Any:
        self.depths.append(depth)
        top = self.order[:depth]
        return np.tile(self.distances[top], (len(needs), 1)), np.tile(top, (len(needs), 1))

    def reach(self, need: Need, live_N: Any) -> int:
        return len(self.distances)

    def rows_at(self, position_C: Any) -> Any:
        return position_C.astype(np.uint64)

    def vectors_at(self, position_C: Any) -> Any:
        return np.zeros((len(position_C), 256), np.int8)


@given(
    live=st.builds(
        lambda rows, share, seed: [bool(one) for one in np.random.default_rng(seed).random(rows) < share],
        st.integers(1, 1500),
        st.sampled_from([0.01, 0.1, 0.5, 1.0]),
        st.integers(0, 999),
    ),
    wanted=st.integers(1, 20),
    values=st.integers(1, 400),
)
def test_dead_rows_in_front_never_make_a_short_list(live: list[bool], wanted: int, values: int) -> None:
    distances = [float(at * 7919 % values) for at in range(len(live))]
    source = Recorded(distances)
    (found,) = nearest(source, [Need(np.zeros((1, 256), np.int8), wanted)], np.array(live))
    alive = sorted(distance for distance, there in zip(distances, live, strict=True) if there)
    cut = alive[wanted - 1] if len(alive) >= wanted else float("inf")
    assert sorted(found.distance_C.tolist()) == [distance for distance in alive if distance <= cut]


def test_a_scan_goes_deeper_only_where_it_must() -> None:
    near_dead = Recorded([float(at) for at in range(1000)])
    nearest(near_dead, [Need(np.zeros((1, 256), np.int8), 10)], np.arange(1000) >= 300)
    plain = Recorded([float(at) for at in range(1000)])
    nearest(plain, [Need(np.zeros((1, 256), np.int8), 10)], np.ones(1000, bool))
    assert len(plain.depths) == 1 and len(near_dead.depths) > 1


@pytest.mark.parametrize("kind", ["paper", "opq"])
def test_one_query_is_answered_to_the_bit_as_among_sixty_four(
    kind: str, codecs: dict[str, Codec], vectors: Callable[..., Any], root: Path
) -> None:
    codec, stored = codecs[kind], vectors(300, 5)
    rows = np.arange(300, dtype=np.uint64)
    stack = Stack(codec, [Segment.build(root, codec, rows[at::3], stored[at::3], 0, 300) for at in range(3)])
    views = vectors(128, 6).reshape(64, 2, 256)
    needs = [Need(view, 20, lists_to_probe(codec, view), 3) for view in views]
    alive = np.ones(300, bool)
    together = nearest(stack, needs, alive)
    for need, found in zip(needs, together, strict=True):
        (alone,) = nearest(stack, [need], alive)
        assert dict(zip(alone.row_C, alone.distance_C, strict=True)) == dict(
            zip(found.row_C, found.distance_C, strict=True)
        )


def test_both_views_get_their_own_nearest_lists(codecs: dict[str, Codec], vectors: Callable[..., Any]) -> None:
    codec, views = codecs["opq"], vectors(2, 9)
    probe = lists_to_probe(codec, views)
    for nprobe in range(1, codec.nlist + 1):
        alone = [set(lists_to_probe(codec, view[None]).lists(nprobe).tolist()) for view in views]
        assert set(probe.lists(nprobe).tolist()) == alone[0] | alone[1]


def test_ties_at_the_cut_are_decided_by_image_id_and_only_their_ids_are_read() -> None:
    asked: list[list[int]] = []

    def ids_of(rows: NDArray[np.uint64]) -> list[str]:
        asked.append(rows.tolist())
        return [f"{99 - row:02d}" for row in rows.tolist()]

    tied = Candidates(
        np.array([1, 2, 3, 4], np.uint64), np.array([0, 5, 5, 5], np.float32), np.zeros((4, 256), np.int8)
    )
    assert nearest_ids(tied, 2, ids_of).row_C.tolist() == [1, 4]
    assert asked == [[2, 3, 4]]
    assert nearest_ids(tied, 4, ids_of) is tied
