"""Seeds of the whole cluster: crashes, pauses, partitions, lost, late and doubled words; every answer is audited."""

from __future__ import annotations

from typing import Any

import pytest

SEEDS = range(200)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--seed")
        metafunc.parametrize("seed", SEEDS if chosen is None else [chosen])


def test_every_answer_is_right_or_says_what_it_lacks(world: Any, seed: int) -> None:
    try:
        world(seed).run()
    except AssertionError as broken:
        pytest.fail(f"replay: pytest tests/simulation -k right_or_says --seed {seed}\n{broken}")


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_many_more_seeds(world: Any) -> None:
    broken = {}
    for number in range(1_000, 6_000):
        try:
            world(number).run()
        except AssertionError as error:
            broken[number] = str(error)
    assert not broken, f"replay each with --seed N: {broken}"
