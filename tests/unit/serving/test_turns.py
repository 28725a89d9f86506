"""Turns: one at a time, in order of rank, and whoever gives up holds nobody back."""

from __future__ import annotations

import asyncio
import threading
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.turns import Turns


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.booleans()), max_size=12))
def test_all_who_wait_are_served_in_order_and_one_at_a_time(asked: list[tuple[int, bool, bool]]) -> None:
    """(rank, gives up while it waits, fails) each; the first piece of work is held until all others wait."""
    order: list[int] = []
    at_work = threading.Lock()

    def work(number: int, fails: bool) -> int:
        assert at_work.acquire(blocking=False), "two at once"
        try:
            order.append(number)
            if fails:
                raise KeyError(number)
            return number
        finally:
            at_work.release()

    async def everybody() -> list[object]:
        turns, opened = Turns(), threading.Event()
        first = asyncio.ensure_future(turns.run(9, opened.wait))
        await asyncio.sleep(0)
        tasks = [
            asyncio.ensure_future(turns.run(rank, partial(work, number, fails)))
            for number, (rank, _, fails) in enumerate(asked)
        ]
        await asyncio.sleep(0)
        for task, (_, gives_up, _) in zip(tasks, asked, strict=True):
            if gives_up:
                task.cancel()
        opened.set()
        said = await asyncio.gather(first, *tasks, return_exceptions=True)
        assert await turns.run(0, lambda: "free again") == "free again"
        return said[1:]

    said = asyncio.run(everybody())
    served = [number for number, (_, gives_up, _) in enumerate(asked) if not gives_up]
    assert order == sorted(served, key=lambda number: (asked[number][0], number))
    for number, (result, (_, gives_up, fails)) in enumerate(zip(said, asked, strict=True)):
        if gives_up:
            assert isinstance(result, asyncio.CancelledError)
        elif fails:
            assert isinstance(result, KeyError)
        else:
            assert result == number


def test_work_that_nobody_waits_for_any_longer_ends_before_the_next_begins() -> None:
    async def both() -> list[str]:
        turns, begun, go_on, ended = Turns(), threading.Event(), threading.Event(), list[str]()

        def slow() -> None:
            begun.set()
            go_on.wait()
            ended.append("slow")

        left = asyncio.ensure_future(turns.run(0, slow))
        await asyncio.to_thread(begun.wait)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        next_one = asyncio.ensure_future(turns.run(0, lambda: ended.append("next")))
        await asyncio.sleep(0)
        go_on.set()
        await next_one
        return ended

    assert asyncio.run(both()) == ["slow", "next"]


def test_a_turn_that_comes_as_its_caller_gives_up_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def three() -> str:
        turns, opened = Turns(), threading.Event()
        first = asyncio.ensure_future(turns.run(0, opened.wait))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(turns.run(0, lambda: "second"))
        third = asyncio.ensure_future(turns.run(0, lambda: "third"))
        await asyncio.sleep(0)
        pass_on = turns._pass_on

        def and_give_up() -> None:
            pass_on()
            second.cancel()  # its turn is given, and it has not woken yet

        monkeypatch.setattr(turns, "_pass_on", and_give_up)
        opened.set()
        await asyncio.wait_for(asyncio.gather(first, third), 5)
        assert second.cancelled()
        return third.result()

    assert asyncio.run(three()) == "third"
