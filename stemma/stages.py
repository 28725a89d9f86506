"""The clock of one answer: how long every stage took, and what is left of the deadline."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from stemma.errors import DeadlineExceeded


@dataclass(slots=True)
class Stages:
    """Wall time by stage, and the time that is left of a deadline. Stages do not overlap."""

    deadline_ms: float
    started: float = field(default_factory=time.monotonic)
    timings_ms: dict[str, float] = field(default_factory=dict)

    def left_ms(self) -> float:
        return self.deadline_ms - 1e3 * (time.monotonic() - self.started)

    @contextmanager
    def stage(self, name: str, *, always: bool = False) -> Iterator[None]:
        """Time one stage. Raises ``DeadlineExceeded`` when no time is left to begin it, unless it runs ``always``."""
        if self.left_ms() <= 0 and not always:
            raise DeadlineExceeded(f"{self.deadline_ms:.0f} ms were over before {name}; give more deadline_ms")
        begun = time.monotonic()
        try:
            yield
        finally:
            spent_ms = 1e3 * (time.monotonic() - begun)
            # a stage may come again: candidates are compared in several rounds
            self.timings_ms[name] = round(self.timings_ms.get(name, 0.0) + spent_ms, 3)
