"""The only file that calls an actor: its ``.remote``, ``ray.get``, ``ray.kill``. Everything else runs without Ray.

What an actor raises comes out as it was raised there; what Ray says of a lost, restarting or unknown actor comes out
as ``Unavailable``.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.membership import Beat
from cluster.placement import Orders, View
from cluster.reading import Read
from cluster.routing import Call
from stemma.api import DeleteResult, HostStatus, IngestResult
from stemma.catalog import Draft
from stemma.config import Settings
from stemma.errors import DeadlineExceeded, StaleRouting, StemmaError, Unavailable
from stemma.flow import AnyQuery, HostReply

NAMESPACE = "stemma"
SHARD = "stemma-shard-"


def shard_name(node_id: str) -> str:
    return f"{SHARD}{node_id}"


def directory_name(url: str) -> str:
    return f"stemma-directory-{_digest(url)}"


def committer_name(url: str) -> str:
    return f"stemma-committer-{_digest(url)}"


def _digest(url: str) -> str:
    return hashlib.blake2b(url.encode(), digest_size=8).hexdigest()


# ---------------------------------------------------------------------- life of actors


def nodes() -> list[str]:
    """Ids of the nodes that are alive, in order."""
    return sorted(node["NodeID"] for node in ray.nodes() if node["Alive"])


def start(
    kind: type,
    *arguments: Any,
    name: str,
    node_id: str | None = None,
    cpus: float,
    groups: dict[str, int] | None = None,
) -> Any:
    """The actor called ``name``, made of ``kind`` where there is none; it restarts for ever, on its node if it has one.

    Detached: it outlives the process that started it, and would otherwise end with the last handle to it.
    """
    options: dict[str, Any] = {
        "name": name,
        "namespace": NAMESPACE,
        "get_if_exists": True,
        "num_cpus": cpus,
        "max_restarts": -1,
        "max_task_retries": 0,
        "lifetime": "detached",
    }
    if node_id is not None:
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node_id, soft=False)
    actor = ray.remote(concurrency_groups=groups)(kind) if groups else ray.remote(kind)
    return actor.options(**options).remote(*arguments)


def find(name: str) -> Any | None:
    """The actor of this name, if there is one."""
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return None


def found(name: str) -> Any:
    """As ``find``. Raises ``Unavailable``."""
    handle = find(name)
    if handle is None:
        raise Unavailable(f"{name} is not running; `stemma up` starts it", subject=name, retry_after_s=1.0)
    return handle


def end(name: str) -> bool:
    """End an actor for good; False when there was none."""
    handle = find(name)
    if handle is None:
        return False
    ray.kill(handle, no_restart=True)
    return True


# ---------------------------------------------------------------------- calls


def call(name: str, method: str, *arguments: Any, timeout_s: float) -> Any:
    """Call and wait, from a process without an event loop."""
    try:
        return ray.get(getattr(found(name), method).remote(*arguments), timeout=timeout_s)  # GetTimeoutError: RayError
    except RayError as error:
        raise _translated(error, name) from error


async def acall(handle: Any, method: str, *arguments: Any, group: str | None = None) -> Any:
    """Call and await; the caller bounds the time."""
    bound = getattr(handle, method)
    try:
        return await (bound.options(concurrency_group=group) if group else bound).remote(*arguments)
    except RayError as error:
        raise _translated(error, method) from error


def _translated(error: RayError, subject: str) -> StemmaError:
    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, StemmaError):
            return cause
        return Unavailable(f"{subject}: the actor broke: {cause!r}", subject=subject, retry_after_s=1.0)
    gone = isinstance(error, ActorDiedError)
    detail = f"{subject}: the actor {'has ended' if gone else 'cannot be reached now'}; try again"
    return Unavailable(detail, subject=ENDED if gone else subject, retry_after_s=1.0)


ENDED = "ended"
"""Subject of ``Unavailable`` when the process that was asked is known to have ended."""


async def obey(host: str, url: str, orders: Orders) -> Beat:
    """Bring a host its orders. Raises ``Unavailable`` (subject ``ENDED`` when its process has certainly ended)."""
    return cast(Beat, await acall(found(shard_name(host)), "obey", url, orders, group="control"))


async def announce(url: str, seq: int) -> bool:
    """Tell the directory of a commit; True when it may be acknowledged. Raises ``Unavailable``."""
    return cast(bool, await acall(found(directory_name(url)), "announce", seq))


async def resealed(url: str) -> None:
    """Tell the directory that segments changed. Raises ``Unavailable``."""
    await acall(found(directory_name(url)), "resealed")


class RayHosts:
    """The hosts and the directory of one collection, as an asker on an event loop sees them."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._handles: dict[str, Any] = {}
        self._known_epoch = 0

    async def ask(self, call: Call, queries: Sequence[AnyQuery], left_ms: float) -> Sequence[HostReply | StemmaError]:
        """One call to one host. Raises ``StaleRouting``, ``DeadlineExceeded``, and ``Unavailable`` for all else."""
        replies = await self._call(call, "search", tuple(queries), left_ms, group="search")
        return cast("Sequence[HostReply | StemmaError]", replies)

    async def pixels(self, read: Read, left_ms: float) -> Mapping[int, bytes]:
        """Originals' working copies by row, as many as the host gives. Raises as ``ask`` does."""
        return cast("Mapping[int, bytes]", await self._call(read.call, "pixels", read.rows, left_ms, group="read"))

    async def _call(self, call: Call, method: str, asked: Any, left_ms: float, *, group: str) -> Any:
        name = shard_name(call.host)
        try:
            handle = self._handles.get(name) or self._handles.setdefault(name, found(name))
            return await acall(handle, method, self._url, call, asked, left_ms, group=group)
        except (StaleRouting, DeadlineExceeded):
            raise
        except Unavailable:
            self._handles.pop(name, None)
            raise
        except StemmaError as error:
            detail = f"{call.host} cannot answer: {error.detail}"
            raise Unavailable(detail, subject=call.host, retry_after_s=1.0) from error

    async def view(self) -> View:
        """What the directory says now. Raises ``Unavailable``."""
        view = cast(View, await acall(found(directory_name(self._url)), "view", self._known_epoch))
        if view.routing is not None:
            self._known_epoch = max(self._known_epoch, view.routing.epoch)
        return view


class RayWriter:
    """The committer of one collection, and what the directory says of its hosts."""

    def __init__(self, url: str, write_ms: float) -> None:
        self._url, self._write_ms = url, write_ms

    async def commit(self, drafts: Sequence[Draft], *, replace: bool) -> IngestResult:
        """Returns when the commit is synced and no host answers without it. Raises ``Overloaded``, ``Unavailable``."""
        return cast(IngestResult, await self._ask("commit", list(drafts), replace))

    async def delete(self, image_ids: Sequence[str]) -> DeleteResult:
        """As ``commit``."""
        return cast(DeleteResult, await self._ask("delete", list(image_ids)))

    async def _ask(self, method: str, *arguments: Any) -> Any:
        try:
            async with asyncio.timeout(self._write_ms / 1e3):
                return await acall(found(committer_name(self._url)), method, *arguments)
        except TimeoutError as error:
            detail = f"the committer gave no word in {self._write_ms:.0f} ms (cluster.write_ms); asking again is safe"
            raise Unavailable(detail, subject=self._url, retry_after_s=1.0) from error

    async def hosts(self) -> Sequence[HostStatus]:
        """Every host that may be running. Raises ``Unavailable``."""
        return cast("Sequence[HostStatus]", await acall(found(directory_name(self._url)), "hosts"))


def connect(url: str, settings: Settings) -> tuple[RayHosts, RayWriter]:
    """One collection whose actors run, as a process that Ray is connected to asks it and writes to it."""
    return RayHosts(url), RayWriter(url, settings.cluster.write_ms)
