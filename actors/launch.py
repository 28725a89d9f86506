"""Put a collection's actors on the Ray that this process is connected to, wait until they can be asked, take them away.

Per node one shard host (for all collections), per collection a directory and a committer. Starting Ray itself is
``serving/deploy.py``'s and the operator's affair.
"""

from __future__ import annotations

import contextlib
import time

from actors import handles
from actors.directory import Directory, start_shard
from actors.ingest import Committer
from cluster.limits import check, check_shared
from cluster.placement import View
from stemma.config import Settings
from stemma.errors import StemmaError, Unavailable

READY_S_MAX = 90.0
CALL_S_MAX = 30.0
POLL_S = 0.05
STARTING_S_MAX = 60.0


def launch(url: str, settings: Settings, *, ready_s_max: float = READY_S_MAX) -> View:
    """Start what serves the collection at ``url``; returns when a search would see every original of it.

    What runs already stays. Raises ``BadRequest`` for settings that contradict each other, ``NotFound`` for no
    collection, ``Conflict`` when another process writes to it or hosts run that were started under settings which it
    cannot share, and ``Unavailable`` when it is not ready in time (nothing is left running then).
    """
    check(settings.cluster)
    roster = handles.nodes()
    for name in filter(handles.find, map(handles.shard_name, roster)):
        with contextlib.suppress(Unavailable):  # one that is just coming back; the others say the same
            check_shared(handles.call(name, "settings", timeout_s=CALL_S_MAX), settings)
    try:
        for node_id in roster:
            start_shard(node_id, settings)
        handles.start(Committer, url, settings, name=handles.committer_name(url), cpus=0.0)
        handles.call(handles.committer_name(url), "seq", timeout_s=STARTING_S_MAX)
        handles.start(Directory, url, roster, settings, name=handles.directory_name(url), cpus=0.0)
        return _ready(url, len(roster), ready_s_max)
    except StemmaError:
        land(url)
        raise


def _ready(url: str, hosts: int, ready_s_max: float) -> View:
    """Wait for the first routing: every host in it has loaded what it serves."""
    ends = time.monotonic() + ready_s_max
    while time.monotonic() < ends:
        try:
            view: View = handles.call(handles.directory_name(url), "view", timeout_s=CALL_S_MAX)
        except Unavailable:
            view = View(routing=None)
        if view.routing is not None:
            return view
        time.sleep(POLL_S)
    raise Unavailable(f"none of {hosts} hosts had loaded {url} after {ready_s_max:.0f} s", subject=url)


def land(url: str) -> None:
    """End what serves the collection at ``url``; shards that serve nothing else end too. Ray itself goes on."""
    with contextlib.suppress(StemmaError):  # nothing that it holds is acknowledged: ending it loses nothing
        handles.call(handles.committer_name(url), "close", timeout_s=CALL_S_MAX)
    handles.end(handles.committer_name(url))
    handles.end(handles.directory_name(url))
    for name in (handles.shard_name(node_id) for node_id in handles.nodes()):
        try:
            left = handles.call(name, "release", url, timeout_s=CALL_S_MAX)
        except StemmaError:
            left = 0
        if not left:
            handles.end(name)
