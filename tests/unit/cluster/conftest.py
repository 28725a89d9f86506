"""Settings with round numbers, replies made by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from stemma.config import ClusterSettings
from stemma.flow import Encoded, Hit, HostReply, ShardQuery


def cluster_settings(**changed: Any) -> ClusterSettings:
    base: dict[str, Any] = {
        "copies": 2,
        "heartbeat_ms": 100,
        "suspect_after_ms": 300,
        "dead_after_ms": 900,
        "announce_ms": 400,
        "host_deadline_ms": 200,
        "hedge_ms_min": 10,
        "breaker_failures": 3,
        "breaker_open_ms": 300,
        "stale_retries_max": 1,
    }
    return ClusterSettings(**{**base, **changed})


def shard_query(*, shortlist: int = 3, nprobe: int = 1, as_of: int | None = None) -> ShardQuery:
    encoded = Encoded(embedding_VD=np.zeros((1, 1), np.int8), cells_VNF=None, featureless=False, weights="w")
    return ShardQuery(encoded=encoded, shortlist=shortlist, nprobe=nprobe, as_of=as_of)


def host_reply(rows: dict[int, float], *, searched: int, total: int, seq: int = 5, **more: Any) -> HostReply:
    """Rows and their distances; ids are the rows in words that do not sort as the rows do."""
    hits = [Hit(row=row, image_id=f"{-row % 100:02d}", distance=d, refined_distance=d) for row, d in rows.items()]
    hits.sort(key=lambda hit: (hit.refined_distance, hit.image_id))
    return HostReply(hits=tuple(hits), images_searched=searched, images_total=total, seq=seq, **more)


@pytest.fixture
def settings() -> Callable[..., ClusterSettings]:
    return cluster_settings


@pytest.fixture
def a_query() -> Callable[..., ShardQuery]:
    return shard_query


@pytest.fixture
def a_reply() -> Callable[..., HostReply]:
    return host_reply
