"""The merge: one cut for every split, whoever answers first, and honest about what was not searched."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stemma.flow import Hit, HostReply
from stemma.index.merge import LIVE_PER_SHORTLIST, cut, in_order, lists_needed, merge


def a_hit(row: int, refined: int, distance: int | None = None) -> Hit:
    coded = distance is not None
    return Hit(
        row=row,
        image_id=f"id-{row * 37 % 101:03d}",
        distance=float(refined if distance is None else distance),
        refined_distance=float(refined),
        coded=coded,
    )


def a_reply(hits: list[Hit], **fields: object) -> HostReply:
    return HostReply(
        **{"hits": tuple(in_order(hits)), "images_searched": len(hits), "images_total": 100, "seq": 5} | fields
    )


hit_lists = st.lists(
    st.tuples(st.integers(0, 100), st.integers(0, 4), st.none() | st.integers(0, 4)),
    max_size=40,
    unique_by=lambda hit: hit[0],
).map(lambda hits: [a_hit(*hit) for hit in hits])


@given(hits=hit_lists, hosts=st.integers(1, 5), seed=st.integers(0, 999), shortlist=st.integers(1, 12))
def test_any_split_and_any_order_of_replies_give_the_same_hits(
    hits: list[Hit], hosts: int, seed: int, shortlist: int
) -> None:
    rng = random.Random(seed)
    shares: list[list[Hit]] = [[] for _ in range(hosts)]
    for hit in hits:
        for share in rng.sample(shares, rng.choice([1, 1, hosts])):  # some rows are answered for by every host
            share.append(hit)
    # A host sends its best coded hits by code and its best exact ones; more than that never matters.
    for at, share in enumerate(shares):
        coded = sorted((hit for hit in share if hit.coded), key=lambda hit: (hit.distance, hit.image_id))[:shortlist]
        shares[at] = [*in_order([hit for hit in share if not hit.coded])[:shortlist], *coded]
    replies = [(f"host-{at}", a_reply(share)) for at, share in enumerate(shares)]
    rng.shuffle(replies)
    merged = merge(dict(replies), shortlist)

    codes = sorted((hit.distance, hit.image_id, hit.row) for hit in hits if hit.coded)[:shortlist]
    kept = {row for _, _, row in codes} | {hit.row for hit in hits if not hit.coded}
    best = sorted((hit.refined_distance, hit.image_id) for hit in hits if hit.row in kept)[:shortlist]
    assert [(hit.refined_distance, hit.image_id) for hit in merged.hits] == best
    assert cut(merged.hits, shortlist) == merged.hits, "cutting again changes nothing"


@given(
    live=st.lists(st.integers(0, 30), min_size=1, max_size=20), nprobe=st.integers(0, 25), shortlist=st.integers(1, 12)
)
def test_the_fewest_lists_that_hold_enough_live_rows(live: list[int], nprobe: int, shortlist: int) -> None:
    needed = lists_needed(np.array(live), nprobe, shortlist)
    at_least = min(nprobe or len(live), len(live))
    enough = [p for p in range(at_least, len(live)) if sum(live[:p]) >= LIVE_PER_SHORTLIST * shortlist]
    assert needed == (enough[0] if enough else len(live))


def test_too_few_live_rows_ask_for_more_lists_over_all_hosts() -> None:
    def half(live: list[int], nprobe: int) -> HostReply:
        return a_reply([], live_by_rank=np.array(live), nprobe=nprobe, codec="opq-1")

    replies = {"a": half([4, 1, 0, 9], 1), "b": half([4, 0, 1, 9], 1)}
    assert merge(replies, 1).nprobe_needed == 3
    assert merge({"a": replies["a"], "b": half([6, 0, 0, 0], 1)}, 1).nprobe_needed is None
    assert merge(replies, 3).nprobe_needed == 4, "all lists, when they hold too little"
    done = merge({"a": half([4, 1, 0, 9], 3), "b": half([4, 0, 1, 9], 3)}, 1)
    assert (done.nprobe, done.nprobe_needed, done.codec) == (3, None, "opq-1")
    one_behind = merge({"a": half([4, 1, 0, 9], 3), "b": half([4, 0, 1, 9], 1)}, 1)
    assert one_behind.nprobe_needed == 3, "every host probes the same lists, or the split would show"


def test_coverage_is_that_of_the_latest_commit_and_never_over_it() -> None:
    merged = merge(
        {
            "a": a_reply([], images_searched=50, images_total=100, seq=5),
            "b": a_reply([], images_searched=55, images_total=104, seq=6),
        },
        3,
    )
    assert (merged.images_searched, merged.images_total, merged.seq) == (104, 104, 5)
    part = merge({"b": a_reply([], images_searched=55, images_total=104, seq=6)}, 3)
    assert (part.images_searched, part.images_total) == (55, 104)


def test_hosts_a_commit_apart_name_an_image_once_by_its_newest_row() -> None:
    old, new = a_hit(3, 1), a_hit(90, 2)
    new = Hit(row=90, image_id=old.image_id, distance=2.0, refined_distance=2.0)
    assert merge({"a": a_reply([old]), "b": a_reply([new])}, 5).hits == (new,)


def test_a_row_that_is_sealed_on_one_host_and_tail_on_another_counts_as_exact() -> None:
    coded, exact = a_hit(3, 2, distance=9), a_hit(3, 2)
    assert merge({"a": a_reply([coded]), "b": a_reply([exact])}, 5).hits == (exact,)


def test_no_reply_searched_nothing_and_a_shortlist_is_not_empty() -> None:
    empty = merge({}, 5)
    assert (empty.hits, empty.images_searched, empty.nprobe_needed) == ((), 0, None)
    with pytest.raises(ValueError, match="at least one"):
        merge({}, 0)
