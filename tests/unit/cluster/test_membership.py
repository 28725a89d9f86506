"""Lives of hosts, as the directory hears of them."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.limits import FLAP_DOUBLINGS_MAX
from cluster.membership import Beat, Life, Members


def beat(number: int, *, seq: int = 1, life: str = "a", host: str = "h0") -> Beat:
    return Beat(host=host, incarnation=life, number=number, seq=seq)


@pytest.fixture
def members(settings: Any) -> Members:
    return Members(settings())


def test_silence_makes_suspect_then_dead(members: Members) -> None:
    members.heard(beat(1), 1, 0)
    lives = []
    for now in (0, 299, 300, 899, 900):
        members.tick(now)
        lives.append(members.life("h0", now))
    assert lives == [Life.ALIVE, Life.ALIVE, Life.SUSPECT, Life.SUSPECT, Life.DEAD]


def test_a_host_that_does_not_catch_up_counts_as_silent(members: Members) -> None:
    members.heard(beat(1, seq=4), 4, 0)
    for number, now in enumerate(range(100, 900, 100), start=2):
        members.heard(beat(number, seq=4), 5, now)
        members.tick(now)
    assert members.life("h0", 899) is Life.SUSPECT
    assert members.life("h0", 900) is Life.DEAD


def test_one_beat_brings_a_suspect_back(members: Members) -> None:
    members.heard(beat(1), 1, 0)
    members.heard(beat(2), 1, 700)
    assert members.life("h0", 710) is Life.ALIVE


def test_each_death_is_forgiven_later(members: Members) -> None:
    """Flapping is bounded: the n-th return takes twice the unbroken life of the one before, up to a cap."""
    now, number, waits = 0.0, 0, []
    for _ in range(FLAP_DOUBLINGS_MAX + 2):
        back = now
        while not members.heard(beat(number := number + 1), 1, now) or members.life("h0", now) is Life.DEAD:
            now += 50
        waits.append(now - back)
        now += 2_000
        members.tick(now)
        assert members.life("h0", now) is Life.DEAD
    assert waits == [0, 600, 1_200, 2_400, 4_800, 4_800]


def test_a_long_good_life_is_forgiven_all(members: Members) -> None:
    members.heard(beat(1), 1, 0)
    members.tick(2_000)
    number, now = 1, 2_000.0
    while now < 20_000:
        members.heard(beat(number := number + 1), 1, now)
        now += 100
    assert members["h0"].deaths == 0


def test_words_of_an_earlier_life_are_ignored(members: Members) -> None:
    members.heard(beat(7, seq=9), 1, 0)
    assert members.heard(beat(1, seq=3, life="b"), 1, 10)
    assert not members.heard(beat(8, seq=9), 1, 20), "an old life does not speak again"
    assert members["h0"].seq == 3, "a new life has read what it says, not what the old one had"
    assert not members.heard(beat(1, seq=4, life="b"), 1, 30), "a doubled word"


def test_who_may_be_answering_somebody(members: Members) -> None:
    """Not heard yet, silent or suspect: all may answer. Only one whose process is known to have ended cannot."""
    for host in ("h0", "h1", "h2"):
        members.enlist(host)
    members.heard(beat(1, seq=5, host="h0"), 1, 0)
    members.heard(beat(1, seq=4, host="h1"), 1, 0)
    members.tick(10_000)
    assert members.life("h1", 10_000) is Life.DEAD
    assert members.unread(5) == ("h1", "h2")
    members.gone("h1", "a")
    assert members.unread(5) == ("h2",)
    members.gone("h2", None)
    assert members.unread(5) == ()
    members.heard(beat(1, seq=4, life="b", host="h1"), 1, 10_020)
    assert members.unread(5) == ("h1",)


def test_the_end_of_another_life_says_nothing(members: Members) -> None:
    members.heard(beat(1, life="b"), 1, 0)
    members.gone("h0", "a")
    assert members.life("h0", 10) is Life.ALIVE
    members.gone("h0", "b")
    assert members.life("h0", 10) is Life.SUSPECT
