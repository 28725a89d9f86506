"""Who may come in, and how many: places in the house, places at work, the time a caller gave. (Keys come later.)"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from cluster.limits import admit
from stemma.config import ServeSettings
from stemma.errors import DeadlineExceeded


class Budget:
    """The time a request has, counted from its arrival."""

    def __init__(self, deadline_ms: float, arrived: float) -> None:
        self.deadline_ms = deadline_ms
        self._ends = arrived + deadline_ms / 1e3

    def left_ms(self) -> float:
        return 1e3 * (self._ends - time.monotonic())

    @asynccontextmanager
    async def enforced(self, what: str) -> AsyncIterator[None]:
        """Cancel what runs inside when the time is over. Raises ``DeadlineExceeded`` naming ``what``."""
        over = DeadlineExceeded(f"{self.deadline_ms:.0f} ms were over during {what}; give more time, or send less")
        if self.left_ms() <= 0:
            raise over
        timeout = asyncio.timeout(self.left_ms() / 1e3)
        try:
            async with timeout:
                yield
        except TimeoutError as error:
            if timeout.expired():
                raise over from error
            raise


class Admission:
    """At most ``concurrency`` requests at work and ``queue_per_concurrency`` times as many waiting.

    A place in the house is taken before the body is read and a place at work only after, so callers that send slowly
    use up the queue and never the workers.
    """

    def __init__(self, settings: ServeSettings, *, draw: Callable[[], float] = random.random) -> None:
        self.inside = 0
        self.working = 0
        self._settings = settings
        self._turn = asyncio.Semaphore(settings.concurrency)
        self._draw = draw

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the house. Raises ``Unavailable`` with ``retry_after_s`` when there is none."""
        working = min(self.inside, self._settings.concurrency)
        admit(self._settings, working=working, waiting=self.inside - working, jitter=self._draw())
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    @asynccontextmanager
    async def work(self) -> AsyncIterator[None]:
        """A place at work, waited for in order of arrival."""
        async with self._turn:
            self.working += 1
            try:
                yield
            finally:
                self.working -= 1
