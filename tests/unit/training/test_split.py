"""The one division of the training photographs: whole groups, a fixed order, exactly 200 and 501."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import split

DATA = Path(os.environ.get("STEMMA_DATA", ""))


def test_the_shipped_list() -> None:
    shipped = split.load()
    assert (len(shipped.train), len(shipped.calibrate)) == (501, 200)
    assert not set(shipped.train) & set(shipped.calibrate)
    for names in (shipped.train, shipped.calibrate):
        assert list(names) == sorted(set(names))
        assert all(name.endswith(".jpg") and "/" not in name for name in names)


@pytest.mark.skipif(not (DATA / "photos" / "train").is_dir(), reason="STEMMA_DATA does not name the development data")
def test_the_shipped_list_is_what_the_rule_gives() -> None:
    assert split.compute(DATA) == split.load()


def test_no_photographs_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--data"):
        split.compute(tmp_path)


@given(st.lists(st.integers(1, 4), min_size=3, max_size=40), st.integers(0, 30))
def test_groups_stay_whole_and_in_order(sizes: list[int], wanted: int) -> None:
    members = [[f"{group:02}-{i}.jpg" for i in range(size)] for group, size in enumerate(sizes)]
    try:
        made = split.divide(members, wanted)
    except ValueError:
        return  # no run of groups fills it exactly; said instead of papered over
    assert len(made.calibrate) == wanted
    assert sorted((*made.train, *made.calibrate)) == sorted(name for group in members for name in group)
    taken = set(made.calibrate)
    assert all(len(taken & set(group)) in (0, len(group)) for group in members)
    # a group was passed over only because it would not have fitted when its turn came
    filled = 0
    for group in sorted(members, key=lambda names: hashlib.sha256(min(names).encode()).hexdigest()):
        assert (group[0] in taken) is (filled + len(group) <= wanted)
        filled += len(group) if group[0] in taken else 0


def test_the_order_of_listing_does_not_matter() -> None:
    members = [[f"{group}-{i}.jpg" for i in range(1 + group % 2)] for group in range(12)]
    assert split.divide(members, 6) == split.divide([group[::-1] for group in members[::-1]], 6)


@given(st.integers(0, 2**32 - 1))
def test_groups_equal_the_slow_twin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bits = rng.random((9, 2, 63)) < 0.5
    for _ in range(6):  # near copies, some of the mirrored view
        to, source, view = rng.integers(9), rng.integers(9), rng.integers(2)
        bits[to, 0] = bits[source, view] ^ (rng.random(63) < 0.15)
    edges = {
        (i, j)
        for i in range(9)
        for j in range(9)
        if min(int((bits[i, 0] != bits[j, view]).sum()) for view in range(2)) <= split.HASH_DISTANCE_MAX
    }
    parts = [{i} for i in range(9)]
    for i, j in edges:
        a, b = next(p for p in parts if i in p), next(p for p in parts if j in p)
        if a is not b:
            parts.remove(b)
            a |= b
    assert sorted(map(sorted, parts)) == sorted(split.groups(bits))


def test_the_hash_survives_brightness_and_not_turning() -> None:
    rng = np.random.default_rng(1)
    grey = rng.uniform(20, 180, (32, 32)).astype(np.float32)
    grey[:16] += 60
    assert np.array_equal(split.dct_hash(grey), split.dct_hash(grey * 1.5))
    assert (split.dct_hash(grey) != split.dct_hash(np.ascontiguousarray(grey.T))).sum() > split.HASH_DISTANCE_MAX
