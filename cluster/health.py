"""What one asker has learnt of each host: its latency quantile (when to hedge), its breaker (whether to ask at all)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from cluster.limits import LATENCIES_KEPT
from stemma.config import ClusterSettings


@dataclass(slots=True)
class _Record:
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES_KEPT))
    failures: int = 0
    open_until_ms: float = 0.0
    on_trial: bool = False
    in_flight: int = 0


class Health:
    """Lives as long as its asker, over all its batches. Times are of the asker's monotonic clock."""

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings = settings
        self._records: dict[str, _Record] = {}

    def _record(self, host: str) -> _Record:
        return self._records.setdefault(host, _Record())

    def asked(self, host: str, now_ms: float) -> None:
        """A call goes out; the first one after an open breaker is its trial."""
        record = self._record(host)
        record.in_flight += 1
        record.on_trial = record.failures >= self._settings.breaker_failures and now_ms >= record.open_until_ms

    def answered(self, host: str, latency_ms: float) -> None:
        record = self._record(host)
        record.in_flight = max(0, record.in_flight - 1)
        record.failures, record.on_trial = 0, False
        record.latencies_ms.append(latency_ms)

    def failed(self, host: str, now_ms: float) -> None:
        record = self._record(host)
        record.in_flight = max(0, record.in_flight - 1)
        record.failures, record.on_trial = record.failures + 1, False
        if record.failures >= self._settings.breaker_failures:
            record.open_until_ms = now_ms + self._settings.breaker_open_ms

    def dropped(self, host: str) -> None:
        """A call was given up for a reason that says nothing of the host."""
        record = self._record(host)
        record.in_flight, record.on_trial = max(0, record.in_flight - 1), False

    def shut(self, host: str, now_ms: float) -> bool:
        """The breaker is open, or its one trial call is under way: asking would only cost the deadline."""
        record = self._records.get(host)
        if record is None or record.failures < self._settings.breaker_failures:
            return False
        return now_ms < record.open_until_ms or record.on_trial

    def shut_hosts(self, hosts: Iterable[str], now_ms: float) -> frozenset[str]:
        return frozenset(host for host in hosts if self.shut(host, now_ms))

    def free(self, hosts: Iterable[str]) -> bool:
        """Whether one more batch may start: no host has ``batches_in_flight_max`` calls of this asker already."""
        busiest = max((self._record(host).in_flight for host in hosts), default=0)
        return busiest < self._settings.batches_in_flight_max

    def hedge_after_ms(self, host: str) -> float:
        """How long to wait for ``host`` before its units are asked of their next owners as well."""
        latencies = sorted(self._record(host).latencies_ms)
        if not latencies:
            return self._settings.host_deadline_ms / 4
        place = min(len(latencies) - 1, int(self._settings.hedge_quantile * len(latencies)))
        return max(self._settings.hedge_ms_min, latencies[place])
