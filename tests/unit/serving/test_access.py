"""Nobody is let in beyond the places there are, and nobody waits longer than it has time."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.access import Admission, Budget
from stemma.config import ServeSettings
from stemma.errors import DeadlineExceeded, Unavailable


@given(concurrency=st.integers(1, 8), queue=st.integers(0, 4), draw=st.floats(0, 1, exclude_max=True))
def test_the_house_holds_exactly_its_places_and_says_when_to_come_again(
    concurrency: int, queue: int, draw: float
) -> None:
    settings = ServeSettings(concurrency=concurrency, queue_per_concurrency=queue)
    admission = Admission(settings, draw=lambda: draw)
    with ExitStack() as inside:
        for _ in range(concurrency * (1 + queue)):
            inside.enter_context(admission.place())
        with pytest.raises(Unavailable) as refused, admission.place():
            pass
        assert refused.value.retry_after_s is not None
        assert 1 <= refused.value.retry_after_s <= settings.retry_after_s_max
    assert admission.inside == 0
    with admission.place():
        assert admission.inside == 1


def test_at_most_concurrency_work_at_once_in_order_of_arrival() -> None:
    async def run() -> None:
        admission = Admission(ServeSettings(concurrency=3))
        done: list[int] = []
        most = 0

        async def one(number: int) -> None:
            nonlocal most
            async with admission.work():
                most = max(most, admission.working)
                await asyncio.sleep(0)
                done.append(number)

        await asyncio.gather(*(one(number) for number in range(20)))
        assert (most, admission.working, done) == (3, 0, list(range(20)))

    asyncio.run(run())


def test_a_budget_counts_from_arrival_and_ends_what_runs_over() -> None:
    async def run(arrived_ms_ago: float, work_s: float) -> None:
        budget = Budget(100, time.monotonic() - arrived_ms_ago / 1e3)
        async with budget.enforced("the test"):
            await asyncio.sleep(work_s)

    with pytest.raises(DeadlineExceeded, match="the test"):
        asyncio.run(run(0, 10))
    with pytest.raises(DeadlineExceeded):
        asyncio.run(run(150, 0))
    asyncio.run(run(0, 0))


def test_a_timeout_of_the_work_itself_is_not_taken_for_the_budgets() -> None:
    async def run() -> None:
        async with Budget(10_000, time.monotonic()).enforced("the test"):
            raise TimeoutError("somebody else's")

    with pytest.raises(TimeoutError, match="somebody"):
        asyncio.run(run())
