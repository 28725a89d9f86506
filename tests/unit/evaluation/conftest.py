"""Answers without an engine: what the evaluation needs of them, made by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from stemma.api import Answer, Candidate, Coverage, Donor, Probabilities, Used, Verdict, Versions

MakeAnswer = Callable[..., Answer]


@pytest.fixture
def make_answer() -> MakeAnswer:
    """``make(["a", "b"], found=True)``: candidates in this order, the first one the original when found."""

    def make(
        ids: Sequence[str] = (),
        *,
        found: bool = False,
        verdict: Verdict | None = None,
        confidence: float = 0.9,
        probabilities: Probabilities | None = None,
        donors: Sequence[Donor] = (),
        exact: bool = True,
        complete: bool = True,
    ) -> Answer:
        candidates = tuple(
            Candidate(
                image_id=image_id,
                distance=0.1 * place,
                refined_distance=0.1 * place,
                match=20.0 - place,
                probabilities=probabilities,
                metadata={"name": f"{image_id}.jpg"},
            )
            for place, image_id in enumerate(ids)
        )
        return Answer(
            query_id="q",
            verdict=verdict or ("inconclusive" if found else "unknown"),
            confidence=confidence,
            original=candidates[0] if found else None,
            candidates=candidates,
            donors=tuple(donors),
            coverage=Coverage(complete=complete, images_searched=5, images_total=5 if complete else 6),
            used=Used(k=100, nprobe=0, reranked=0, exact=exact),
            versions=Versions(seq=1, codec="exact", weights="w"),
            timings_ms={"total": 12.0},
        )

    return make
