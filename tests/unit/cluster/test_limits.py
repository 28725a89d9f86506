"""Bounds, and the audits themselves: each must be able to fail."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import invariants
from cluster.limits import admit, check, check_shared, fresh_ms, queue_max, retry_after_s
from cluster.routing import Routing, Weighted
from stemma.config import ClusterSettings, ServeSettings, load
from stemma.errors import BadRequest, Conflict, Overloaded, Unavailable
from stemma.flow import Found, Unit

SERVE = ServeSettings(concurrency=4, queue_per_concurrency=2)


def test_the_defaults_do_not_contradict_each_other() -> None:
    check(ClusterSettings())
    assert fresh_ms(ClusterSettings()) < ClusterSettings().announce_ms


@pytest.mark.parametrize(
    "wrong", [{"heartbeat_ms": 2_000}, {"suspect_after_ms": 9_000}, {"announce_ms": 500.0}, {"dead_after_ms": 100}]
)
def test_timings_that_contradict_each_other_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(BadRequest, match="cluster"):
        check(ClusterSettings(**wrong))


@pytest.mark.parametrize(
    ("key", "other"),
    [("search.tail_block_rows", 64), ("search.codec", "opq"), ("search.exact_images_max", 7), ("encoder.weights", "w")],
)
def test_what_hosts_index_by_is_the_same_for_all_collections_of_a_cluster(key: str, other: Any) -> None:
    held, asked = load(), load(overrides=[f"{key}={other}"])
    for one, two in ((held, asked), (asked, held)):
        with pytest.raises(Conflict, match=key) as refused:
            check_shared(one, two)
        assert refused.value.subject == key
    check_shared(asked, asked)


def test_hosts_that_look_oftener_serve_who_waits_longer_and_not_the_other_way() -> None:
    often, seldom = (load(overrides=[f"cluster.announce_ms={wait}"]) for wait in (1_000, 2_000))
    check_shared(often, seldom)
    with pytest.raises(Conflict, match=r"cluster\.announce_ms"):
        check_shared(seldom, often)


def test_settings_that_hosts_do_not_index_by_may_differ() -> None:
    check_shared(load(), load(overrides=["search.k=3", "search.shortlist=20", "cluster.copies=2", "serve.port=9000"]))


def test_a_full_queue_refuses_at_once() -> None:
    admit(SERVE, working=3, waiting=99, jitter=0.5)
    admit(SERVE, working=4, waiting=7, jitter=0.5)
    with pytest.raises(Unavailable) as ours:
        admit(SERVE, working=4, waiting=8, jitter=0.5)
    with pytest.raises(Overloaded) as theirs:
        admit(SERVE, working=4, waiting=8, jitter=0.5, own_quota=True)
    assert ours.value.retry_after_s and theirs.value.retry_after_s


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_retry_after_is_bounded_and_grows_with_the_queue(waiting: int, jitter: float) -> None:
    seconds = retry_after_s(SERVE, waiting, jitter)
    assert 1.0 <= seconds <= SERVE.retry_after_s_max
    assert seconds <= retry_after_s(SERVE, max(waiting, queue_max(SERVE)), jitter)


def found(a_reply: Any, **changed: Any) -> Found:
    hits = a_reply({1: 1.0, 2: 2.0}, searched=0, total=0).hits
    base = {
        "hits": hits,
        "images_searched": 2,
        "images_total": 2,
        "missing_hosts": (),
        "seq": 5,
        "nprobe": 0,
        "codec": "exact",
    }
    return Found(**{**base, **changed})


def test_an_honest_answer_passes(a_reply: Any) -> None:
    invariants.audit_found(found(a_reply), 3)
    invariants.audit_found(found(a_reply, images_total=9, missing_hosts=("h0",)), 2)
    invariants.audit_acknowledged(found(a_reply), 5, None)
    invariants.audit_acknowledged(found(a_reply), 9, 4)


@pytest.mark.parametrize(
    "broken",
    [
        lambda hits: {"hits": hits[::-1]},
        lambda hits: {"hits": hits[:1] * 2},
        lambda hits: {"hits": hits * 2},
        lambda hits: {"images_total": 3},
        lambda hits: {"missing_hosts": ("h0",)},
        lambda hits: {"images_searched": 3},
        lambda hits: {"images_searched": 1, "images_total": 1},
    ],
)
def test_a_broken_answer_is_seen(a_reply: Any, broken: Any) -> None:
    with pytest.raises(AssertionError):
        invariants.audit_found(found(a_reply, **broken(found(a_reply).hits)), 3)


def test_other_broken_laws_are_seen(a_reply: Any) -> None:
    with pytest.raises(AssertionError, match="acknowledged"):
        invariants.audit_acknowledged(found(a_reply), 6, None)
    with pytest.raises(AssertionError, match="disagree"):
        invariants.audit_replies({("a",): a_reply({}, searched=1, total=2), ("b",): a_reply({}, searched=1, total=3)})
    with pytest.raises(AssertionError, match="were searched"):
        invariants.audit_replies({("a",): a_reply({}, searched=2, total=3), ("b",): a_reply({}, searched=2, total=3)})
    monotone = invariants.Monotone()
    monotone.observe("h0", "seq", 3)
    with pytest.raises(AssertionError, match="back to 2"):
        monotone.observe("h0", "seq", 2)


def test_a_routing_that_serves_a_unit_twice_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = (Weighted("h0"), Weighted("h1"))
    routing = Routing(epoch=1, seq=1, hosts=hosts, copies=1, segments=(), tail_block_rows=8)
    unit = Unit(0, 8, "tail")
    monkeypatch.setattr(Routing, "owners", lambda self, unit: ("h0", "h0"))
    with pytest.raises(AssertionError):
        invariants.audit_routing(routing, [unit])
    monkeypatch.setattr(Routing, "owners", lambda self, unit: ())
    with pytest.raises(AssertionError):
        invariants.audit_servers(routing, frozenset(), [unit])
