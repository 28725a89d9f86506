"""Each planted bug must be caught by at least two seeds: a simulation that lets one through proves nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cluster import fanout, placement
from cluster.fanout import OneView
from cluster.health import Health
from cluster.hosting import Hosting
from cluster.membership import Members
from cluster.round import Round
from cluster.routing import Call
from stemma.errors import StaleRouting

SEEDS_MAX = 80
CATCHES = 2
Plant = Callable[[pytest.MonkeyPatch], None]


def first_come_first_served(patch: pytest.MonkeyPatch) -> None:
    """B4: ties go to the shard that answered first."""
    honest = fanout.merge

    def merge(replies: Any, shortlist: int) -> Any:
        result = honest(replies, shortlist)
        hits = [hit for reply in replies.values() for hit in reply.hits if not hit.coded]
        if any(hit.coded for reply in replies.values() for hit in reply.hits):
            return result
        return replace(result, hits=tuple(sorted(hits, key=lambda hit: hit.refined_distance)[:shortlist]))

    patch.setattr(fanout, "merge", merge)


def each_shard_asked_for_its_share(patch: pytest.MonkeyPatch) -> None:
    """B5: k/n of each shard instead of k."""
    honest = fanout.Ask

    def ask(**parts: Any) -> Any:
        queries = tuple(replace(each, shortlist=max(1, each.shortlist // 2)) for each in parts["queries"])
        return honest(**{**parts, "queries": queries})

    patch.setattr(fanout, "Ask", ask)


def any_epoch_will_do(patch: pytest.MonkeyPatch) -> None:
    """B9: a host serves a call of another epoch by the routing it happens to hold."""

    def owns(call: Call, routing: Any) -> Any:
        return lambda unit: routing.order(unit, call.demoted)[: len(call.path)] == call.path

    def admit(hosting: Hosting, call: Call, left_ms: float) -> Any:
        if not hosting.held:
            raise StaleRouting("nothing held yet")
        return hosting.held[-1]

    patch.setattr(Call, "owns", owns)
    patch.setattr(Hosting, "admit", admit)


def timed_out_and_not_said(patch: pytest.MonkeyPatch) -> None:
    """B20: a shard timed out, the answer is not marked partial."""
    honest = fanout._found

    def found(result: Any, **parts: Any) -> Any:
        whole = honest(result, **{**parts, "missing": frozenset()})
        return replace(whole, images_total=whole.images_searched)

    patch.setattr(fanout, "_found", found)


def missing_host_unnamed(patch: pytest.MonkeyPatch) -> None:
    """B20, the milder form: counts are honest, the host is not named."""
    honest = fanout._found
    patch.setattr(fanout, "_found", lambda result, **parts: honest(result, **{**parts, "missing": frozenset()}))


def hedge_counted_twice(patch: pytest.MonkeyPatch) -> None:
    """Both the slow host's reply and those of its hedge are taken."""
    honest = Round._take

    def take(round_: Round, node: Any, replies: Any, missing: Any) -> None:
        for child in node.children or ():
            if child.replies is not None:
                replies[child.path] = child.replies
        honest(round_, node, replies, missing)

    patch.setattr(Round, "_take", take)


def failover_forgets_for_whom(patch: pytest.MonkeyPatch) -> None:
    """The next owner is asked for all it serves, not for what the failed one left."""
    patch.setattr(
        Round, "call", lambda round_, path: Call(key=round_.routing.key, path=path[-1:], demoted=round_.demoted)
    )


def acknowledged_before_announced(patch: pytest.MonkeyPatch) -> None:
    """The acknowledgement goes out before the hosts have read the commit."""
    patch.setattr(Members, "unread", lambda members, seq: ())


def forgotten_hosts_do_not_count(patch: pytest.MonkeyPatch) -> None:
    """A silent host is taken for a dead one: it may be answering somebody all the same."""
    honest = Members.unread

    def unread(members: Members, seq: int) -> tuple[str, ...]:
        return tuple(host for host in honest(members, seq) if members[host].admitted)

    patch.setattr(Members, "unread", unread)


def a_view_of_any_age(patch: pytest.MonkeyPatch) -> None:
    """A host answers from whatever it read last, however long ago."""
    patch.setattr(Hosting, "must_look", lambda hosting, now_ms, at_least=-1: at_least > hosting.seq or hosting.seq < 0)


def commits_mixed(patch: pytest.MonkeyPatch) -> None:
    """Replies of different commits are merged as if they were of one."""

    def one_view(replies: Any, as_of: int | None) -> OneView:
        return OneView(replies, max((reply.seq for reply in replies.values()), default=-1), -1, frozenset())

    patch.setattr(fanout, "one_view", one_view)
    patch.setattr(fanout, "audit_replies", lambda replies: None)


def breaker_never_shuts_again(patch: pytest.MonkeyPatch) -> None:
    """A host that failed often is never asked again."""
    patch.setattr(Health, "shut", lambda health, host, now_ms: health._record(host).failures >= 3)


def the_dead_stay_dead(patch: pytest.MonkeyPatch) -> None:
    """A host that was declared dead once is never taken back."""
    patch.setattr(Members, "_probation_ms", lambda members, member: 1e9 if member.deaths else 0.0)


def orders_only_once(patch: pytest.MonkeyPatch) -> None:
    """A host is told of a routing once; when the word is lost, nobody says it again."""
    honest = placement.Directory._orders
    told: set[Any] = set()

    def orders(directory: Any, member: Any) -> Any:
        whole = honest(directory, member)
        fresh = tuple(each for each in whole.prepare if (id(directory), member.incarnation, each.key) not in told)
        told.update((id(directory), member.incarnation, each.key) for each in fresh)
        return replace(whole, prepare=fresh)

    patch.setattr(placement.Directory, "_orders", orders)


PLANTS: list[Plant] = [
    first_come_first_served,
    each_shard_asked_for_its_share,
    any_epoch_will_do,
    timed_out_and_not_said,
    missing_host_unnamed,
    hedge_counted_twice,
    failover_forgets_for_whom,
    acknowledged_before_announced,
    forgotten_hosts_do_not_count,
    a_view_of_any_age,
    commits_mixed,
    breaker_never_shuts_again,
    the_dead_stay_dead,
    orders_only_once,
]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_caught(world: Any, plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    caught = []
    for seed in range(SEEDS_MAX):
        try:
            world(seed).run()
        except AssertionError:
            caught.append(seed)
            if len(caught) == CATCHES:
                return
    pytest.fail(f"{plant.__doc__} was caught by seeds {caught} of {SEEDS_MAX} only")
