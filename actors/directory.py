"""The directory of one collection: brings hosts their orders, hears their beats; ``cluster/placement.py`` decides.

An async actor, so its decisions run one at a time. It can be lost: hosts go on under the routings they hold, askers
under the last view, commits wait ``announce_ms`` each; a new one hears everything again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from actors import handles
from actors.shard import Shard, now_ms
from cluster import placement
from cluster.membership import Life, Member
from cluster.placement import Confirm, Instruction, Orders, View
from stemma.api import HostStatus
from stemma.catalog import Catalog
from stemma.config import Settings
from stemma.errors import StemmaError, Unavailable
from stemma.flow import Unit
from stemma.index.choice import codec_of
from stemma.index.segment import segment_set

TICKS_PER_HEARTBEAT = 5
STATES = {Life.ALIVE: "live", Life.SUSPECT: "suspect", Life.DEAD: "dead"}


class Directory:
    """The actor. ``roster``: the hosts that may be running."""

    def __init__(self, url: str, roster: Sequence[str], settings: Settings) -> None:
        self._url, self._settings = url, settings
        self._catalog = Catalog.open(url)
        segments, codec = self._index()
        self._directory = placement.Directory(
            settings.cluster,
            tail_block_rows=settings.search.tail_block_rows,
            generation=int(time.time()) // 60,  # a clock set back is made good when hosts and askers tell their epochs
            now_ms=now_ms(),
            roster=roster,
            seq=self._catalog.seq,
            segments=segments,
            codec=codec,
        )
        self._confirmed = asyncio.Condition()
        self._orders: dict[str, Orders] = {}
        self._errands: dict[str, asyncio.Task[None]] = {}
        self._keeping: asyncio.Task[None] | None = None

    def _index(self) -> tuple[tuple[Unit, ...], str]:
        """The segments on disk, and the codec that they are searched with."""
        root = Path(self._url)
        codec = codec_of(self._settings, root, len(self._catalog))
        return segment_set(root, codec), codec.id

    # ------------------------------------------------------------------ asked from outside

    async def keep(self) -> None:
        """Begin to keep the collection's hosts. Every call from outside does it, so a restarted actor begins again."""
        if self._keeping is None:
            self._keeping = asyncio.create_task(self._keep())

    async def view(self, known_epoch: int = 0) -> View:
        """The routing in force, for an asker that holds one of ``known_epoch``."""
        await self.keep()
        await self._obey(self._directory.seen(known_epoch, now_ms()))
        return self._directory.view(now_ms())

    async def announce(self, seq: int) -> bool:
        """A commit is durable: returns True when it may be acknowledged, False after ``announce_ms``."""
        await self.keep()
        await self._obey(self._directory.announce(seq, now_ms()))
        async with self._confirmed:
            try:
                async with asyncio.timeout(self._settings.cluster.announce_ms / 1e3):
                    await self._confirmed.wait_for(lambda: self._directory.view(now_ms()).seq >= seq)
            except TimeoutError:
                return False
        return True

    async def resealed(self) -> None:
        """Segments have changed on disk."""
        segments, codec = await asyncio.to_thread(self._look)
        await self._obey(self._directory.sealed(segments, now_ms(), codec))

    async def hosts(self) -> list[HostStatus]:
        """Every host that may be running, for people."""
        await self.keep()
        now = now_ms()
        return [self._status(member, now) for member in self._directory.members]

    def _status(self, member: Member, now: float) -> HostStatus:
        life = self._directory.members.life(member.host, now)
        heard = member.well_ms is not None and now - member.well_ms < self._settings.cluster.suspect_after_ms
        state = "loading" if heard and life is Life.DEAD else STATES[life]
        fields = {"host": member.host, "state": state, "images": member.images, "seq": max(0, member.seq)}
        return HostStatus.model_validate(fields)

    # ------------------------------------------------------------------ keeping

    async def _keep(self) -> None:
        """Tick for ever; look after the disk every heartbeat and after Ray's nodes every ``dead_after_ms``."""
        cluster = self._settings.cluster
        pause_s = cluster.heartbeat_ms / 1e3 / TICKS_PER_HEARTBEAT
        surveyed_ms = ticks = 0.0
        while True:
            await self._obey(self._directory.tick(now_ms()))
            if ticks % TICKS_PER_HEARTBEAT == 0:
                await self.resealed()
            if now_ms() - surveyed_ms >= cluster.dead_after_ms:
                surveyed_ms = now_ms()
                await self._survey()
            ticks += 1
            await asyncio.sleep(pause_s)

    def _look(self) -> tuple[tuple[Unit, ...], str]:
        self._catalog.refresh()
        return self._index()

    async def _survey(self) -> None:
        """A shard for every node that is there; hosts of nodes that Ray has given up will not come back."""
        there = await asyncio.to_thread(handles.nodes)
        known = {member.host for member in self._directory.members}
        for node in there:
            if node not in known:
                self._directory.enlist(node)
                await asyncio.to_thread(start_shard, node, self._settings)
        for host in known - set(there):
            await self._obey(self._directory.strike(host, now_ms()))

    async def _obey(self, instructions: Sequence[Instruction]) -> None:
        for each in instructions:
            if isinstance(each, Confirm):
                async with self._confirmed:
                    self._confirmed.notify_all()
                continue
            self._orders[each.host] = each  # the newest orders say all that is still wanted
            if each.host not in self._errands:
                self._errands[each.host] = asyncio.create_task(self._errand(each.host))

    async def _errand(self, host: str) -> None:
        """Bring one host its newest orders, one call at a time, until there are none."""
        try:
            while (orders := self._orders.pop(host, None)) is not None:
                await self._bring(host, orders)
        finally:
            del self._errands[host]

    async def _bring(self, host: str, orders: Orders) -> None:
        try:
            async with asyncio.timeout(self._settings.cluster.dead_after_ms / 1e3):
                beat = await handles.obey(host, self._url, orders)
        except TimeoutError:
            return
        except Unavailable as error:
            if error.subject == handles.ENDED:
                await self._obey(self._directory.gone(host, orders.incarnation, now_ms()))
            return
        except StemmaError:
            return  # it lives but cannot load: silence is how that is told
        await self._obey(self._directory.heard(beat, now_ms()))


def start_shard(node_id: str, settings: Settings) -> None:
    """One shard host on one node; one that is there stays."""
    threads = settings.cluster.threads_per_host
    handles.start(
        Shard,
        node_id,
        settings,
        name=handles.shard_name(node_id),
        node_id=node_id,
        cpus=float(threads),
        groups={"search": threads, "read": 1, "control": 1},
    )
