"""What the gateway counts, as Prometheus text. One registry per gateway process."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from stemma.api import Answer, Comparison, IngestResult

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "stemma_requests", "Requests answered", ["route", "method", "status"], registry=self._registry
        )
        self._request_s = Histogram(
            "stemma_request_seconds", "Time of a request", ["route"], buckets=SECONDS, registry=self._registry
        )
        self._stage_s = Histogram(
            "stemma_stage_seconds", "Time of a query's stage", ["stage"], buckets=SECONDS, registry=self._registry
        )
        self._verdicts = Counter("stemma_answers", "Answers by verdict", ["verdict"], registry=self._registry)
        self._incomplete = Counter(
            "stemma_answers_incomplete", "Answers that did not search every image", registry=self._registry
        )
        self._comparisons = Counter(
            "stemma_comparisons", "Pairs compared for a caller, by verdict", ["verdict"], registry=self._registry
        )
        self._items = Counter(
            "stemma_ingest_items", "Pictures taken in, by status", ["status"], registry=self._registry
        )

    def gauge(self, name: str, meaning: str, read: Callable[[], float]) -> None:
        """A value that is read when it is scraped."""
        Gauge(name, meaning, registry=self._registry).set_function(read)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        self._requests.labels(route, method, str(status)).inc()
        self._request_s.labels(route).observe(seconds)

    def answer(self, answer: Answer) -> None:
        self._verdicts.labels(answer.verdict).inc()
        for stage, spent_ms in answer.timings_ms.items():
            self._stage_s.labels(stage).observe(spent_ms / 1e3)
        if not answer.coverage.complete:
            self._incomplete.inc()

    def comparison(self, comparison: Comparison) -> None:
        self._comparisons.labels(comparison.verdict).inc()

    def ingest(self, result: IngestResult) -> None:
        for item in result.items:
            self._items.labels(item.status).inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)
