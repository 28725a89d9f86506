"""Places by distance against a slow twin, and what rounding does to them."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.codes import places


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 5), st.sampled_from([1, 2]))
@settings(max_examples=40, deadline=None)
def test_places_are_those_of_a_sorted_list(seed: int, originals: int, queries: int, views: int) -> None:
    rng = np.random.default_rng(seed)
    original_ND = rng.integers(-9, 10, (originals, 8)).astype(np.float32)
    query_QVD = rng.integers(-9, 10, (queries, views, 8)).astype(np.float32)
    wanted_Q = rng.integers(0, originals, queries)
    for place, query_VD, wanted in zip(places(query_QVD, original_ND, wanted_Q), query_QVD, wanted_Q, strict=True):
        far = [min(float(((view - each) ** 2).sum()) for view in query_VD) for each in original_ND]
        assert place == 1 + sum(other < far[wanted] for other in far)


def test_the_nearer_view_counts() -> None:
    original_ND = np.eye(3, dtype=np.float32)
    query_QVD = np.stack([np.stack([original_ND[1], original_ND[2]])])
    assert places(query_QVD, original_ND, np.array([2])).tolist() == [1]
    assert places(query_QVD, original_ND, np.array([0])).tolist() == [3]
