"""A whole cluster in one thread, from one seed: real decisions, fake clock, fake network, fake disks.

Replay a failing seed with ``pytest tests/simulation --seed N``. The fake host is a dict of rows and the fake catalog a
list of commits; everything that decides (``cluster/``) is the code that runs in production.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest

from cluster import fanout as fanout_room
from cluster.fanout import Ask, Done, Failure, Fanout, Refresh
from cluster.health import Health
from cluster.hosting import Hosting
from cluster.invariants import Monotone, audit_acknowledged, audit_found, audit_routing, audit_servers
from cluster.limits import check
from cluster.membership import Beat
from cluster.placement import Confirm, Directory, Instruction, Orders, View
from cluster.routing import Routing, units_of
from stemma.config import ClusterSettings
from stemma.errors import DeadlineExceeded, StaleRouting
from stemma.flow import Encoded, Found, Hit, HostReply, ShardQuery, Unit

ALIVE = 2**62
BLOCK = 8
LISTS = 5
VALUES = 18  # few, so that distances tie all the time


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="replay one seed of the simulation")


@dataclass(frozen=True)
class Row:
    row: int
    image_id: str
    value: int
    added: int


def make_query(value: int, shortlist: int, *, nprobe: int, as_of: int | None) -> ShardQuery:
    encoded = Encoded(
        embedding_VD=np.full((1, 1), value, np.int8), cells_VNF=None, featureless=False, weights="simulated"
    )
    return ShardQuery(encoded=encoded, shortlist=shortlist, nprobe=nprobe, as_of=as_of)


class Truth:
    """The catalog: rows, the commit that added each, the commit that ended it."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.deleted: dict[int, int] = {}
        self.by_id: dict[str, int] = {}
        self.seq = 0
        self.segments: tuple[Unit, ...] = ()
        self._live: dict[int, list[Row]] = {}

    def commit(self, rng: random.Random) -> None:
        self.seq += 1
        if self.by_id and rng.random() < 0.35:
            for image_id in rng.sample(sorted(self.by_id), min(len(self.by_id), rng.randint(1, 2))):
                self.deleted[self.by_id.pop(image_id)] = self.seq
            return
        for _ in range(rng.randint(1, 4)):
            again = bool(self.by_id) and rng.random() < 0.2
            image_id = rng.choice(sorted(self.by_id)) if again else f"{rng.getrandbits(24):06x}"
            if image_id in self.by_id:
                self.deleted[self.by_id[image_id]] = self.seq
            self.by_id[image_id] = len(self.rows)
            self.rows.append(Row(len(self.rows), image_id, rng.randrange(VALUES), self.seq))

    def seal(self) -> None:
        """The oldest whole blocks of the tail become a segment, or two segments one."""
        sealed = self.segments[-1].row_hi if self.segments else 0
        whole = len(self.rows) // BLOCK * BLOCK
        if len(self.segments) >= 3:
            first, second, *others = self.segments
            self.segments = (Unit(first.row_lo, second.row_hi, "segment"), *others)
        elif whole > sealed:
            self.segments = (*self.segments, Unit(sealed, whole, "segment"))

    def live(self, seq: int) -> list[Row]:
        """Rows that count at ``seq``, which is never later than now: what was read once stays so."""
        known = self._live.get(seq)
        if known is None:
            known = [row for row in self.rows if row.added <= seq < self.deleted.get(row.row, ALIVE)]
            self._live[seq] = known
        return known


def unit_of(row: int, segments: tuple[Unit, ...]) -> Unit:
    for unit in segments:
        if unit.row_lo <= row < unit.row_hi:
            return unit
    return Unit(row // BLOCK * BLOCK, row // BLOCK * BLOCK + BLOCK, "tail")


def value_of(query: ShardQuery) -> int:
    return int(query.encoded.embedding_VD[0, 0])


def rank_of_list(row: Row, query: ShardQuery) -> int:
    return (row.value - value_of(query)) % LISTS


def hit_of(row: Row, query: ShardQuery, *, coded: bool) -> Hit:
    distance = abs(row.value - value_of(query))
    coarse = distance // 3 if coded else distance
    return Hit(row=row.row, image_id=row.image_id, distance=coarse, refined_distance=distance, coded=coded)


def host_reply(
    live: list[Row], mine: list[Row], query: ShardQuery, routing: Routing, seq: int, codec: str
) -> HostReply:
    """What a correct host answers from its rows."""
    coded: list[Hit] = []
    exact: list[Hit] = []
    by_rank = np.zeros(LISTS, np.int64)
    for row in mine:
        if codec == "exact" or unit_of(row.row, routing.segments).kind == "tail":
            exact.append(hit_of(row, query, coded=False))
            continue
        rank = rank_of_list(row, query)
        by_rank[rank] += 1
        if rank < query.nprobe:
            coded.append(hit_of(row, query, coded=True))
    coded.sort(key=lambda hit: (hit.distance, hit.image_id))
    hits = sorted(
        [
            *coded[: query.shortlist],
            *sorted(exact, key=lambda hit: (hit.refined_distance, hit.image_id))[: query.shortlist],
        ],
        key=lambda hit: (hit.refined_distance, hit.image_id),
    )
    return HostReply(
        hits=tuple(hits),
        images_searched=len(mine),
        images_total=len(live),
        seq=seq,
        live_by_rank=None if codec == "exact" else by_rank,
        nprobe=0 if codec == "exact" else query.nprobe,
        codec=codec,
    )


def oracle(live: list[Row], query: ShardQuery, segments: tuple[Unit, ...], codec: str) -> list[tuple[int, str, int]]:
    """The one right answer, written without merge: (distance, image_id, row), one process, everything in hand."""
    tail = [row for row in live if codec == "exact" or unit_of(row.row, segments).kind == "tail"]
    sealed = [row for row in live if row not in tail]
    probe = query.nprobe
    while probe < LISTS and sum(rank_of_list(row, query) < probe for row in sealed) < 10 * query.shortlist:
        probe += 1
    probed = [row for row in sealed if rank_of_list(row, query) < probe]
    target = value_of(query)
    probed.sort(key=lambda row: (abs(row.value - target) // 3, row.image_id))
    best = [*tail, *probed[: query.shortlist]]
    return sorted((abs(row.value - target), row.image_id, row.row) for row in best)[: query.shortlist]


@dataclass
class Process:
    """Something that can crash, pause and has a clock of its own."""

    name: str
    rate: float
    offset_ms: float
    life: int = 0
    up: bool = True
    paused_until: float = 0.0

    def clock(self, now: float) -> float:
        return self.offset_ms + now * self.rate


@dataclass
class FakeHost(Process):
    hosting: Hosting | None = None
    blind_until: float = 0.0  # cannot read the catalog


@dataclass
class FakeAsker(Process):
    view: View = field(default_factory=lambda: View(routing=None))
    health: Health | None = None


@dataclass
class Question:
    fan: Fanout
    asker: FakeAsker
    acknowledged: int
    began: float
    queries: tuple[ShardQuery, ...]
    segments: set[tuple[Unit, ...]]
    life: int
    done: set[int] = field(default_factory=set)


class World:
    """One seed's cluster. ``run`` plays it out, audits everything and returns what happened in numbers."""

    settings_base: ClassVar[dict[str, Any]] = {
        "heartbeat_ms": 100,
        "suspect_after_ms": 300,
        "dead_after_ms": 900,
        "announce_ms": 400,
        "host_deadline_ms": 150,
        "hedge_ms_min": 10,
        "breaker_failures": 3,
        "breaker_open_ms": 300,
    }
    faults_end = 5_000.0
    calm_end = 10_300.0
    probe_from = 9_500.0

    def __init__(self, seed: int, *, faults: bool = True) -> None:
        self.seed = seed
        self.rng = rng = random.Random(seed)
        self.settings = ClusterSettings(copies=rng.choice([1, 1, 2, 2, 3]), **self.settings_base)
        check(self.settings)
        self.codec = rng.choice(["exact", "exact", "coded"])
        self.faults = faults
        self.loss = rng.choice([0.0, 0.02, 0.1]) if faults else 0.0
        self.double = rng.choice([0.0, 0.05]) if faults else 0.0
        self.slow = rng.choice([0.0, 0.05, 0.15]) if faults else 0.0
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = itertools.count()
        self.truth = Truth()
        self.acknowledged = 0
        self.cut: set[frozenset[str]] = set()
        self.monotone = Monotone()
        self.questions: list[Question] = []
        self.tally = {"complete": 0, "partial": 0, "none": 0, "healed": 0, "commits": 0, "early": 0, "stale": 0}
        self.hosts = {
            name: FakeHost(name, self._rate(), rng.uniform(0, 1e6))
            for name in [f"h{at}" for at in range(rng.randint(1, 5))]
        }
        self.askers = [FakeAsker(f"a{at}", self._rate(), rng.uniform(0, 1e6)) for at in range(rng.randint(1, 3))]
        self.writer = Process("writer", self._rate(), 0.0)
        self.keeper = Process("directory", self._rate(), rng.uniform(0, 1e6))
        self.directory: Directory | None = None
        self.audited: set[Any] = set()

    def _rate(self) -> float:
        return self.rng.uniform(0.97, 1.03)

    # ------------------------------------------------------------------ time and network

    def after(self, delay_ms: float, process: Process | None, act: Callable[[], None]) -> None:
        """``act`` in ``delay_ms``, unless ``process`` has crashed since; a paused process acts when it wakes."""
        life = process.life if process is not None else 0

        def fire() -> None:
            if process is None:
                act()
            elif process.up and process.life == life:
                if process.paused_until > self.now:
                    self.after(process.paused_until - self.now, process, act)
                else:
                    act()

        heapq.heappush(self.events, (self.now + delay_ms, next(self.numbers), fire))

    def send(self, source: Process, target: Process, act: Callable[[], None]) -> None:
        """Perhaps lost, perhaps twice, each copy with a delay of its own (so words overtake each other)."""
        if frozenset((source.name, target.name)) in self.cut or self.rng.random() < self._now(self.loss):
            return
        for _ in range(1 + (self.rng.random() < self._now(self.double))):
            delay = self.rng.uniform(0.2, 3.0)
            if self.rng.random() < self._now(self.slow):
                delay = self.rng.uniform(20, 250)
            self.after(delay, None, lambda: self._deliver(target, act))  # to whichever life of it is up by then

    def _deliver(self, target: Process, act: Callable[[], None]) -> None:
        if target.up:
            self.after(0.0, target, act)

    def _now(self, probability: float) -> float:
        return probability if self.now < self.faults_end else 0.0

    # ------------------------------------------------------------------ hosts

    def start_host(self, host: FakeHost) -> None:
        host.life += 1
        host.up = True
        host.paused_until = 0.0
        host.hosting = Hosting(host.name, f"{host.name}.{host.life}", self.settings)

    def crash_host(self, host: FakeHost) -> None:
        if not host.up:
            return
        incarnation = host.hosting.incarnation if host.hosting else None
        host.up, host.hosting = False, None
        if self.rng.random() < 0.5 and self.directory is not None:  # Ray tells of it, or does not
            self.after(
                self.rng.uniform(5, 200),
                self.keeper,
                lambda: self.obey(self.directory.gone(host.name, incarnation, self.keeper.clock(self.now))),
            )
        self.after(self.rng.uniform(50, 1_500), None, lambda: None if host.up else self.start_host(host))

    def look(self, host: FakeHost, then: Callable[[bool], None]) -> None:
        """Read the catalog: what is read is somewhere between now and the end of the look."""
        began = host.clock(self.now)
        if host.blind_until > self.now:
            self.after(5.0, host, lambda: then(False))
            return

        def read() -> None:
            seq = self.truth.seq

            def apply() -> None:
                assert host.hosting is not None
                host.hosting.looked(began, max(seq, host.hosting.seq))
                self.monotone.observe(host.hosting.incarnation, "seq", host.hosting.seq)
                then(True)

            self.after(self.rng.uniform(0.1, 2.0), host, apply)

        self.after(self.rng.uniform(0.1, 2.0), host, read)

    def order(self, host: FakeHost, orders: Orders) -> None:
        assert host.hosting is not None
        work = host.hosting.obey(orders, host.clock(self.now))

        def beat() -> None:
            assert host.hosting is not None
            word: Beat = host.hosting.beat()
            self.send(host, self.keeper, lambda: self.hear(word))

        def prepare() -> None:
            for routing in work.prepare:
                assert host.hosting is not None
                host.hosting.prepared(routing, orders.seq)
            beat()

        def load(looked: bool) -> None:
            if not looked:
                beat()
            elif work.prepare:
                self.after(self.rng.uniform(1, 40), host, prepare)
            else:
                beat()

        if work.look:
            self.look(host, load)
        else:
            load(True)

    def serve(self, host: FakeHost, ask: Ask, left_ms: float, reply: Callable[[Any], None]) -> None:
        assert host.hosting is not None
        try:
            routing = host.hosting.admit(ask.call, left_ms)
        except StaleRouting:
            self.tally["stale"] += 1
            reply(Failure.STALE)
            return
        except DeadlineExceeded:
            return
        at_least = max((query.as_of or -1 for query in ask.queries), default=-1)

        def search(fresh: bool) -> None:
            if not fresh:
                reply(Failure.LOST)
                return
            assert host.hosting is not None
            seq = host.hosting.seq
            owns = ask.call.owns(routing)
            mine: dict[Unit, bool] = {}
            replies = []
            for query in ask.queries:
                live = self.truth.live(seq if query.as_of is None else min(seq, query.as_of))
                served = []
                for row in live:
                    unit = unit_of(row.row, routing.segments)
                    if unit not in mine:
                        mine[unit] = owns(unit)
                    if mine[unit]:
                        served.append(row)
                replies.append(host_reply(live, served, query, routing, seq, self.codec))
            busy = self.rng.uniform(0.5, 4.0) if self.rng.random() > self._now(0.1) else self.rng.uniform(20, 200)
            self.after(busy, host, lambda: reply(replies))

        if host.hosting.must_look(host.clock(self.now), min(at_least, self.truth.seq)):
            self.look(host, search)
        else:
            search(True)

    # ------------------------------------------------------------------ directory

    def start_directory(self) -> None:
        self.keeper.life += 1
        self.keeper.up = True
        self.directory = Directory(
            self.settings,
            tail_block_rows=BLOCK,
            generation=self.keeper.life if self.rng.random() < 0.7 else 1,
            now_ms=self.keeper.clock(self.now),
            roster=self.hosts,
            seq=self.truth.seq,
            segments=self.truth.segments,
        )
        self.keep()

    def keep(self) -> None:
        assert self.directory is not None
        self.obey(self.directory.tick(self.keeper.clock(self.now)))
        if self.rng.random() < 0.2:
            self.obey(self.directory.sealed(self.truth.segments, self.keeper.clock(self.now)))
        self.after(40.0, self.keeper, self.keep)

    def hear(self, beat: Beat) -> None:
        assert self.directory is not None
        self.obey(self.directory.heard(beat, self.keeper.clock(self.now)))

    def obey(self, instructions: tuple[Instruction, ...]) -> None:
        for each in instructions:
            if isinstance(each, Confirm):
                confirmed = each.seq
                self.send(self.keeper, self.writer, lambda seq=confirmed: self.confirm(seq))
            else:
                host = self.hosts[each.host]
                self.send(self.keeper, host, lambda host=host, orders=each: self.order(host, orders))

    # ------------------------------------------------------------------ writer

    def write(self) -> None:
        """One commit; it counts when the directory says so, or announce_ms later."""
        self.truth.commit(self.rng)
        self.tally["commits"] += 1
        if self.rng.random() < 0.12:
            self.truth.seal()
        seq, since = self.truth.seq, self.writer.clock(self.now)
        self.announce(seq, since)

    def announce(self, seq: int, since: float) -> None:
        if self.acknowledged >= seq:
            return
        if self.writer.clock(self.now) - since >= self.settings.announce_ms:
            self.acknowledged = max(self.acknowledged, seq)
            return

        def arrive() -> None:
            assert self.directory is not None
            now = self.keeper.clock(self.now)
            self.obey(self.directory.announce(seq, now))

        self.send(self.writer, self.keeper, arrive)
        self.after(60.0, self.writer, lambda: self.announce(seq, since))

    def confirm(self, seq: int) -> None:
        if seq > self.acknowledged:
            self.tally["early"] += 1
        self.acknowledged = max(self.acknowledged, seq)

    # ------------------------------------------------------------------ askers

    def refresh(self, asker: FakeAsker, then: Callable[[], None] | None = None) -> None:
        """Fetch the view; ``then`` runs once, with whatever view there is after 100 ms."""
        called = []
        known = asker.view.routing.epoch if asker.view.routing is not None else 0

        def finish() -> None:
            if then is not None and not called:
                called.append(True)
                then()

        def take(view: View) -> None:
            newer = asker.view.routing is None or (
                view.routing is not None and view.routing.epoch >= asker.view.routing.epoch
            )
            if newer and view.routing is not None:
                asker.view = view
                self.monotone.observe(f"{asker.name}.{asker.life}", "epoch", view.routing.epoch)
                self.audit_view(view)
            finish()

        def tell() -> None:
            assert self.directory is not None
            now = self.keeper.clock(self.now)
            self.obey(self.directory.seen(known, now))
            view = self.directory.view(now)
            self.send(self.keeper, asker, lambda: take(view))

        self.send(asker, self.keeper, tell)
        if then is not None:
            self.after(100.0, asker, finish)

    def poll(self, asker: FakeAsker) -> None:
        self.refresh(asker)
        stale_for = self.rng.choice([1, 1, 1, 6])  # some askers hold an old routing for long
        self.after(self.settings.heartbeat_ms * stale_for, asker, lambda: self.poll(asker))

    def ask(self, asker: FakeAsker) -> None:
        if asker.view.routing is None or not asker.view.routing.hosts:
            return
        rng = self.rng
        queries = tuple(
            make_query(
                rng.randrange(VALUES),
                rng.choice([1, 3, 5]),
                nprobe=rng.choice([1, 2, 5]),
                as_of=rng.randint(0, self.truth.seq) if rng.random() < 0.1 else None,
            )
            for _ in range(rng.choice([1, 1, 2, 4]))
        )
        assert asker.health is not None
        now = asker.clock(self.now)
        fan = Fanout(
            asker.view.routing,
            queries,
            [now + rng.choice([400.0, 400.0, 120.0, 5.0 if self.now < self.faults_end else 400.0]) for _ in queries],
            asker.health,
            self.settings,
            asker.view.suspects,
        )
        question = Question(fan, asker, self.acknowledged, self.now, queries, {asker.view.routing.segments}, asker.life)
        self.questions.append(question)
        self.act(question, fan.start(now))
        self.watch(question)

    def watch(self, question: Question) -> None:
        wake = question.fan.wake_ms
        if wake is None:
            return
        asker = question.asker
        delay = max(0.5, (wake - asker.clock(self.now)) / asker.rate)

        def fire() -> None:
            self.act(question, question.fan.tick(asker.clock(self.now)))
            self.watch(question)

        self.after(min(delay, 30.0), asker, fire)

    def act(self, question: Question, actions: tuple[fanout_room.Action, ...]) -> None:
        asker, fan = question.asker, question.fan
        for each in actions:
            if isinstance(each, Done):
                self.audit_done(question, each)
            elif isinstance(each, Refresh):

                def rerouted() -> None:
                    if fan.finished:
                        return
                    view = asker.view
                    if view.routing is not None:
                        question.segments.add(view.routing.segments)
                    self.act(question, fan.rerouted(view.routing, view.suspects, asker.clock(self.now)))

                self.refresh(asker, rerouted)
            else:
                self.dispatch(question, each)

    def dispatch(self, question: Question, ask: Ask) -> None:
        asker, host = question.asker, self.hosts[ask.call.host]
        left = ask.deadline_ms - asker.clock(self.now)

        def back(result: Any) -> None:
            def arrive() -> None:
                now = asker.clock(self.now)
                if isinstance(result, Failure):
                    self.act(question, question.fan.failed(ask.ask_id, result, now))
                else:
                    self.act(question, question.fan.answered(ask.ask_id, result, ask.positions, now))

            self.send(host, asker, arrive)

        self.send(asker, host, lambda: self.serve(host, ask, left, back))
        if not host.up and self.rng.random() < 0.7:  # a dead actor is known as such at once, most of the time
            lost = Failure.LOST
            self.after(
                self.rng.uniform(0.5, 10),
                asker,
                lambda: self.act(question, question.fan.failed(ask.ask_id, lost, asker.clock(self.now))),
            )

    # ------------------------------------------------------------------ audits

    def audit_view(self, view: View) -> None:
        routing = view.routing
        if routing is None or (routing.key, view.suspects) in self.audited:
            return
        self.audited.add((routing.key, view.suspects))
        units = units_of(routing, len(self.truth.rows))
        audit_routing(routing, units)
        audit_servers(routing, view.suspects & set(routing.host_ids), units[::3])

    def audit_done(self, question: Question, done: Done) -> None:
        assert done.position not in question.done, "a query ended twice"
        question.done.add(done.position)
        healed = question.began >= self.probe_from
        if done.found is None:
            self.tally["none"] += 1
            assert not healed, f"no answer after all faults ended: {done.error!r}"
            return
        found, query = done.found, question.queries[done.position]
        complete = found.images_searched == found.images_total and not found.missing_hosts
        self.tally["complete" if complete else "partial"] += 1
        audit_found(found, query.shortlist)
        audit_acknowledged(found, question.acknowledged, query.as_of)
        view = found.seq if query.as_of is None else min(found.seq, query.as_of)
        live = self.truth.live(view)
        assert found.images_total == len(live), f"total {found.images_total}, there are {len(live)} at {view}"
        self.audit_hits(found, query, live, question, complete)
        if healed:
            assert complete, f"still partial after all faults ended: missing {found.missing_hosts}"
            self.tally["healed"] += 1

    def audit_hits(self, found: Found, query: ShardQuery, live: list[Row], question: Question, complete: bool) -> None:
        target = value_of(query)
        by_row = {row.row: row for row in live}
        got = [(hit.refined_distance, hit.image_id, hit.row) for hit in found.hits]
        for distance, image_id, row in got:
            assert row in by_row, f"row {row} ({image_id}) is not live at {found.seq}"
            assert (abs(by_row[row].value - target), by_row[row].image_id) == (distance, image_id)
        if complete and not found.notes:
            right = [oracle(live, query, segments, self.codec) for segments in question.segments]
            assert got in right, f"complete, but {got} is not {right}"
        if self.codec == "exact":
            assert len(got) == min(query.shortlist, found.images_searched)
            overlooked = [
                row
                for row in live
                if row.row not in {each[2] for each in got}
                and (len(got) < query.shortlist or (abs(row.value - target), row.image_id) < got[-1][:2])
            ]
            assert len(overlooked) <= found.images_total - found.images_searched, "better images were overlooked"

    def audit_healed(self) -> None:
        """Faults have ended for a while: every host is routed again, trusted, and holds what it is asked for."""
        assert self.directory is not None
        view = self.directory.view(self.keeper.clock(self.now))
        assert view.routing is not None and view.routing.host_ids == tuple(sorted(self.hosts)), view
        assert not view.suspects, f"still suspect: {sorted(view.suspects)}"
        assert view.routing.segments == self.truth.segments, "sealed segments were never routed"
        for host in self.hosts.values():
            assert host.hosting is not None and view.routing in host.hosting.held, f"{host.name} does not hold it"

    # ------------------------------------------------------------------ the play

    def mischief(self) -> None:
        """One fault, at random."""
        rng, host = self.rng, self.rng.choice(list(self.hosts.values()))
        kind = rng.choice(["crash", "crash", "pause", "cut", "cut", "blind", "directory", "asker", "writer-cut"])
        if kind == "crash":
            self.crash_host(host)
        elif kind == "pause" and host.up:
            host.paused_until = self.now + rng.uniform(50, 1_500)
        elif kind == "blind":
            host.blind_until = self.now + rng.uniform(100, 1_500)
        elif kind == "directory" and self.keeper.up:
            self.keeper.up, self.directory = False, None
            self.after(rng.uniform(50, 1_200), None, lambda: None if self.keeper.up else self.start_directory())
        elif kind == "asker":
            asker = rng.choice(self.askers)
            asker.life += 1
            asker.view, asker.health = View(routing=None), Health(self.settings)
            self.poll(asker)
        elif kind in ("cut", "writer-cut"):
            other = self.writer if kind == "writer-cut" else rng.choice([self.keeper, self.keeper, *self.askers])
            near = self.keeper if kind == "writer-cut" else host
            link = frozenset((near.name, other.name))
            self.cut.add(link)
            self.after(rng.uniform(100, 2_000), None, lambda: self.cut.discard(link))

    def calm(self) -> None:
        """All faults end: links are healed, processes run."""
        self.cut.clear()
        for host in self.hosts.values():
            host.blind_until = host.paused_until = 0.0
            if not host.up:
                self.start_host(host)
        if not self.keeper.up:
            self.start_directory()

    def run(self) -> dict[str, int]:
        rng = self.rng
        for host in self.hosts.values():
            self.start_host(host)
        for _ in range(rng.randint(3, 12)):
            self.truth.commit(rng)
        self.acknowledged = self.truth.seq
        self.truth.seal()
        self.start_directory()
        for asker in self.askers:
            asker.health = Health(self.settings)
            self.poll(asker)
        if self.faults:
            for _ in range(rng.randint(4, 14)):
                self.after(rng.uniform(200, self.faults_end - 100), None, self.mischief)
        self.after(self.faults_end, None, self.calm)
        for _ in range(rng.randint(10, 30)):
            self.after(rng.uniform(100, self.faults_end), self.writer, self.write)
        for _ in range(50):
            asker = rng.choice(self.askers)
            self.after(rng.uniform(300, self.faults_end), None, lambda asker=asker: self.ask(asker))
        for at in range(8):
            asker = rng.choice(self.askers)
            self.after(self.probe_from + 60 * at, None, lambda asker=asker: self.ask(asker))
        while self.events and self.events[0][0] <= self.calm_end:
            self.now, _, act = heapq.heappop(self.events)
            act()
        assert self.acknowledged == self.truth.seq, "a commit was never acknowledged"
        self.audit_healed()
        assert self.tally["healed"] > 0, "nobody could ask after all faults ended"
        for question in self.questions:
            ended = question.fan.finished or question.life != question.asker.life
            assert ended or question.began > self.calm_end - 500, f"a batch begun at {question.began} never ended"
        return self.tally


@pytest.fixture
def world() -> type[World]:
    return World
