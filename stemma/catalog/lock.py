"""One writer per collection: a file lock, and beside it who holds it."""

from __future__ import annotations

import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from stemma.errors import Conflict

NAME = "writer.lock"
HOLDER_NAME = "writer.json"


class WriterLock:
    """Held from construction to ``release``; the kernel lets go when the process dies. Raises Conflict naming the
    holder when another process, or another Catalog of this one, has it."""

    def __init__(self, root: Path) -> None:
        self._path = root / NAME
        self._lock = FileLock(
            self._path, timeout=0, thread_local=False
        )  # whichever thread asks: a committer has several
        try:
            self._lock.acquire()
        except Timeout as error:
            raise Conflict(
                f"the collection is being written by {_holder(root)}; one writer at a time", subject=str(root)
            ) from error
        self._inode = self._path.stat().st_ino
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat()}
        beside = root / (HOLDER_NAME + ".tmp")
        beside.write_text(json.dumps(holder), encoding="utf-8")
        beside.replace(root / HOLDER_NAME)

    def held(self) -> bool:
        """False once somebody has removed or replaced the lock file under us: then we may not commit any more."""
        try:
            return self._lock.is_locked and self._path.stat().st_ino == self._inode
        except FileNotFoundError:
            return False

    def release(self) -> None:
        self._lock.release()


def _holder(root: Path) -> str:
    try:
        holder = json.loads((root / HOLDER_NAME).read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"
