"""What the gateway counts is what happened."""

from __future__ import annotations

from serving.metrics import Metrics
from stemma.api import Answer, Coverage, Used, Versions


def answer(*, complete: bool) -> Answer:
    return Answer(
        query_id="q",
        verdict="unknown",
        confidence=0.5,
        original=None,
        candidates=(),
        coverage=Coverage(complete=complete, images_searched=1, images_total=2),
        used=Used(k=1, nprobe=0, reranked=0, exact=True),
        versions=Versions(seq=1, codec="exact", weights="w"),
        timings_ms={"search": 40.0},
    )


def test_partial_answers_stages_and_gauges_are_counted() -> None:
    metrics, queue = Metrics(), [3.0]
    metrics.gauge("stemma_queue", "waiting", lambda: queue[0])
    for complete in (True, False, False):
        metrics.answer(answer(complete=complete))
    text = metrics.text().decode()
    assert "stemma_answers_incomplete_total 2.0" in text
    assert 'stemma_answers_total{verdict="unknown"} 3.0' in text
    assert 'stemma_stage_seconds_bucket{le="0.025",stage="search"} 0.0' in text
    assert 'stemma_stage_seconds_bucket{le="0.05",stage="search"} 3.0' in text
    assert "stemma_queue 3.0" in text
    queue[0] = 0
    assert "stemma_queue 0.0" in metrics.text().decode()


def test_two_gateways_of_one_process_do_not_count_together() -> None:
    one, other = Metrics(), Metrics()
    one.request("/v1/search", "POST", 200, 0.1)
    assert 'route="/v1/search"' in one.text().decode()
    assert 'route="/v1/search"' not in other.text().decode()
