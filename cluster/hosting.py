"""What a shard host decides: which routings it can serve, whether its view is fresh enough, which calls it refuses.

The actor around it (``actors/shard.py``) obeys: it looks at the catalog, loads, searches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cluster.limits import ROUTINGS_HELD_MAX, fresh_ms
from cluster.membership import Beat
from cluster.placement import Orders
from cluster.routing import Call, Key, Routing
from stemma.config import ClusterSettings
from stemma.errors import DeadlineExceeded, StaleRouting
from stemma.flow import Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What the host must do before it answers the directory: look at the catalog first, then load."""

    look: bool
    prepare: tuple[Routing, ...]


class Hosting:
    """One host, one collection. ``now_ms`` is the host's own monotonic clock."""

    def __init__(self, host: str, incarnation: str, settings: ClusterSettings, *, weight: float = 1.0) -> None:
        self.host = host
        self.incarnation = incarnation
        self.seq = -1
        self._settings = settings
        self._weight = weight
        self._held: dict[Key, Routing] = {}
        self._look_began_ms: float | None = None
        self._beats = 0

    # ------------------------------------------------------------------ towards the directory

    def obey(self, orders: Orders, now_ms: float) -> Work:
        """What the directory's word asks for. Orders for another life of this host ask for nothing but a beat."""
        if orders.incarnation != self.incarnation:
            return Work(look=self.must_look(now_ms, orders.seq), prepare=())
        self._held = {key: held for key, held in self._held.items() if key.epoch >= orders.floor}
        stale = self._look_began_ms is None or now_ms - self._look_began_ms >= self._settings.heartbeat_ms / 2
        wanted = tuple(routing for routing in orders.prepare if routing.key not in self._held)
        return Work(look=stale or orders.seq > self.seq, prepare=wanted)

    def looked(self, began_ms: float, seq: int) -> None:
        """A look at the catalog, begun at ``began_ms``, has seen every commit up to ``seq``."""
        assert seq >= self.seq, f"{self.host}: commit {self.seq} was unread, now {seq}"
        self.seq = seq
        self._look_began_ms = began_ms if self._look_began_ms is None else max(self._look_began_ms, began_ms)

    def prepared(self, routing: Routing, at_least: int) -> bool:
        """Everything that ``routing`` puts here is loaded. Refused (False) until the announced commit is read."""
        if self.seq < at_least or self._look_began_ms is None:
            return False
        self._held[routing.key] = routing
        while len(self._held) > ROUTINGS_HELD_MAX:
            del self._held[min(self._held)]
        return True

    def beat(self, images: int = 0) -> Beat:
        self._beats += 1
        return Beat(
            host=self.host,
            incarnation=self.incarnation,
            number=self._beats,
            seq=self.seq,
            holds=tuple(sorted(self._held)),
            weight=self._weight,
            images=images,
        )

    # ------------------------------------------------------------------ towards askers

    def admit(self, call: Call, left_ms: float) -> Routing:
        """The routing that ``call`` was made under. Raises ``StaleRouting``, ``DeadlineExceeded``."""
        if left_ms <= 0:
            raise DeadlineExceeded("the query expired before this host came to it", subject=self.host)
        routing = self._held.get(call.key)
        if routing is None or call.host != self.host:
            raise StaleRouting(f"epoch {call.key.epoch} is not held by {self.host}; refresh", subject=self.host)
        return routing

    def must_look(self, now_ms: float, at_least: int = -1) -> bool:
        """True when the last look at the catalog is too old to answer from, or has not seen ``at_least``."""
        if self._look_began_ms is None or at_least > self.seq:
            return True
        return now_ms - self._look_began_ms > fresh_ms(self._settings)

    def holds(self) -> Callable[[Unit], bool]:
        """What must stay loaded: everything that any held routing puts on this host."""
        tests = [routing.holds(self.host) for routing in self._held.values()]
        return lambda unit: any(test(unit) for test in tests)

    @property
    def held(self) -> tuple[Routing, ...]:
        return tuple(self._held[key] for key in sorted(self._held))
