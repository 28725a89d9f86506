"""Every bound of the cluster in one place: which setting it is, what follows from it, and what happens at the edge.

====================  ==================================================================================
bound                 setting (``ClusterSettings``, ``ServeSettings``, ``LimitSettings``)
====================  ==================================================================================
silence               ``heartbeat_ms``, ``suspect_after_ms``, ``dead_after_ms``
staleness             ``announce_ms``: an acknowledgement waits no longer; ``fresh_ms`` follows from it
one call              ``host_deadline_ms``, within the query's deadline; ``queries_per_call_max``
second copies         ``hedge_quantile``, ``hedge_ms_min``; ``HEDGES_PER_ROUND``
originals' pixels     ``READ_SHARE`` of ``host_deadline_ms``; then the asker reads them itself
a host that fails     ``breaker_failures``, ``breaker_open_ms``
re-asks               ``stale_retries_max``; ``ROUNDS_MAX``
calls at once         ``batches_in_flight_max``
waiting writes        ``WRITES_QUEUED_MAX``
waiting queries       ``concurrency`` x ``queue_per_concurrency``
====================  ==================================================================================
"""

from __future__ import annotations

from stemma.config import ClusterSettings, ServeSettings, Settings
from stemma.errors import BadRequest, Conflict, Overloaded, StemmaError, Unavailable

ROUNDS_MAX = 4
"""Rounds of one query: the first, one that brings all hosts to one seq, one that probes deeper, one spare."""

HEDGES_PER_ROUND = 1
"""Hosts of one round that a second copy is asked for: a slow cluster must not be asked twice as much."""

ROUTINGS_HELD_MAX = 8
"""Routings a host keeps: the current one, the next, and those of queries that are still under way."""

READ_SHARE = 0.25
"""Share of ``host_deadline_ms`` that a host has to give originals' pixels: whoever asks has them in its own catalog."""

WRITES_QUEUED_MAX = 4_096
"""Pictures and ids that may wait for a commit; more are told to come back."""

LATENCIES_KEPT = 128
"""Calls of one host that its latency quantile is taken over."""

FLAP_DOUBLINGS_MAX = 4
"""A host that died n times is taken back after suspect_after_ms x 2**n of unbroken life, n at most this."""

INCARNATIONS_REMEMBERED = 64
"""Former lives of a host whose late messages are still known as such."""

PATIENCE_DEATHS = 15
"""A routed host that is alive but cannot load what it should is given up after this many times ``dead_after_ms``."""

EPOCHS_PER_GENERATION = 2**20
"""Epochs of one directory's life; the next directory starts above them."""

FRESH_SHARE = 0.9
"""Share of ``announce_ms`` that a host trusts its last look at the catalog: clocks may differ by 10 % in rate."""


def fresh_ms(settings: ClusterSettings) -> float:
    """How old a host's last look at the catalog may be while it answers.

    A commit is acknowledged when every host that may answer has read it, or ``announce_ms`` after it was made. A host
    whose last look began less than ``fresh_ms`` ago therefore holds everything that was acknowledged, whatever the
    network did to the announcement. This, not the directory, is what makes a delete hold for the very next search.
    """
    return FRESH_SHARE * settings.announce_ms


def check(settings: ClusterSettings) -> None:
    """Raise ``BadRequest`` for timings that contradict each other."""
    if not settings.heartbeat_ms < settings.suspect_after_ms < settings.dead_after_ms:
        raise BadRequest(
            "cluster.heartbeat_ms < cluster.suspect_after_ms < cluster.dead_after_ms must hold", subject="cluster"
        )
    if settings.heartbeat_ms >= fresh_ms(settings):
        raise BadRequest(
            f"cluster.heartbeat_ms must be under {FRESH_SHARE:.0%} of cluster.announce_ms, or hosts go stale between "
            "two heartbeats",
            subject="cluster.announce_ms",
        )


HOST_KEYS = ("search.tail_block_rows", "search.codec", "search.exact_images_max", "encoder.size", "encoder.weights")
"""What a shard host makes every collection's index by, so that all collections of one cluster must agree on it."""


def check_shared(held: Settings, asked: Settings) -> None:
    """Raise ``Conflict`` when a host that runs under ``held`` would serve a collection of ``asked`` wrongly."""
    for key in HOST_KEYS:
        section, _, name = key.partition(".")
        theirs, ours = (getattr(getattr(each, section), name) for each in (held, asked))
        if theirs != ours:
            raise Conflict(
                f"this cluster's hosts run under {key}={theirs}, not {ours}: serve under the same", subject=key
            )
    # A host that trusts its last look for longer than the directory waits would miss an acknowledged delete.
    if held.cluster.announce_ms > asked.cluster.announce_ms:
        key = "cluster.announce_ms"
        raise Conflict(f"this cluster's hosts need {key}={held.cluster.announce_ms} or more", subject=key)


def queue_max(settings: ServeSettings) -> int:
    """Queries that may wait."""
    return settings.concurrency * settings.queue_per_concurrency


def retry_after_s(settings: ServeSettings, waiting: int, jitter: float) -> float:
    """Seconds to wait before trying again: longer for a longer queue, spread by ``jitter`` in [0, 1) (no herd)."""
    assert 0.0 <= jitter < 1.0
    pressure = min(1.0, waiting / max(1, queue_max(settings)))
    return round(1.0 + (settings.retry_after_s_max - 1.0) * (0.1 + 0.2 * pressure) * jitter, 3)


def admit(settings: ServeSettings, *, working: int, waiting: int, jitter: float, own_quota: bool = False) -> None:
    """Let one more query in, or raise at once: ``Overloaded`` for the caller's own share, ``Unavailable`` for ours."""
    if working < settings.concurrency or waiting < queue_max(settings):
        return
    kind: type[StemmaError] = Overloaded if own_quota else Unavailable
    raise kind(
        f"{waiting} queries wait already (serve.concurrency x serve.queue_per_concurrency); try again later",
        subject="queue",
        retry_after_s=retry_after_s(settings, waiting, jitter),
    )
