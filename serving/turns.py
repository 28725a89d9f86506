"""One thing at a time, what is furthest along first.

A picture passes the finder twice, to be described and to have its hits verified. First come, first served would
describe everybody before anybody is verified, and many who come at once would all be late; so what was begun is
finished first.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Turns:
    """Runs plain functions in threads, one after the other. For one event loop."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._number = itertools.count()
        self._busy = False

    async def run(self, rank: int, work: Callable[[], T]) -> T:
        """What ``work`` returns or raises, when its turn has come: the lowest ``rank`` first, then who came first.

        A caller who gives up while he waits is passed over; work that has begun ends before the next begins, whether or
        not anybody waits for it.
        """
        if self._busy:
            turn = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (rank, next(self._number), turn))
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():  # the turn came in the same moment
                    self._pass_on()
                raise
        self._busy = True
        job = asyncio.ensure_future(asyncio.to_thread(work))
        job.add_done_callback(self._ended)
        return await asyncio.shield(job)

    def _ended(self, job: asyncio.Future[T]) -> None:
        if not job.cancelled():
            job.exception()  # looked at, should nobody wait for it any longer
        self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._busy = False
