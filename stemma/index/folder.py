"""Immutable folders: written whole under a temporary name, synced, renamed. A name that is there is complete.

A crash at any point leaves either nothing, or a folder whose name starts with ``TEMPORARY``, or the finished folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stemma.errors import Corrupt

TEMPORARY = ".tmp-"
_CHUNK_BYTES = 1 << 20

PIECE_ROWS = 65_536


class Pieces:
    """Kept rows of several arrays, one after the other, as the content of one file; never in memory as a whole."""

    def __init__(self, parts: Sequence[tuple[NDArray[Any], NDArray[np.bool_]]]) -> None:
        self._parts = tuple(parts)

    def __iter__(self) -> Iterator[memoryview]:
        for array, keep in self._parts:
            for start in range(0, len(array), PIECE_ROWS):
                rows = slice(start, start + PIECE_ROWS)
                yield np.ascontiguousarray(array[rows][keep[rows]]).data


Content = bytes | NDArray[Any] | Pieces


def digest_json(value: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(encode_json(value)).hexdigest()


def encode_json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, indent=1).encode()


def read_json(path: Path) -> dict[str, Any]:
    """Raises ``Corrupt`` naming the file when it is missing or is no JSON object."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise Corrupt(f"{path.name} cannot be read: {error}", subject=path.parent.name) from error
    if not isinstance(value, dict):
        raise Corrupt(f"{path.name} holds no object", subject=path.parent.name)
    return value


def describe(content: Content) -> dict[str, Any]:
    """Size and digest of a file's content, as they stand in a manifest."""
    digest, size_bytes = hashlib.sha256(), 0
    for body in _bodies(content):
        digest.update(body)
        size_bytes += body.nbytes
    return {"bytes": size_bytes, "sha256": digest.hexdigest()}


def _bodies(content: Content) -> Iterator[memoryview]:
    if isinstance(content, Pieces):
        yield from content
    else:
        yield memoryview(content) if isinstance(content, bytes) else np.ascontiguousarray(content).data


def check(folder: Path, name: str, expected: Mapping[str, Any], *, verify: bool) -> None:
    """Raises ``Corrupt`` unless the file has the described size and, with ``verify``, the described digest."""
    path = folder / name
    size = path.stat().st_size if path.is_file() else None
    if size != expected["bytes"]:
        raise Corrupt(f"{name} has {size} bytes instead of {expected['bytes']}; rebuild it", subject=folder.name)
    if verify and digest_file(path) != expected["sha256"]:
        raise Corrupt(f"{name} does not match its digest; rebuild it", subject=folder.name)


def digest_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def write_folder(parent: Path, name: str, files: Mapping[str, Content]) -> Path:
    """The folder ``parent/name`` with these files, synced; one that is already there is kept as it is."""
    parent.mkdir(parents=True, exist_ok=True)
    target = parent / name
    if target.exists():
        return target
    temporary = parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    temporary.mkdir()
    for file_name, content in files.items():
        with (temporary / file_name).open("wb") as file:
            for body in _bodies(content):
                file.write(body)
            file.flush()
            os.fsync(file.fileno())
    sync_folder(temporary)
    temporary.rename(target)
    sync_folder(parent)
    return target


def remove_folder(folder: Path) -> None:
    """Takes the folder's name away first, so that a crash never leaves half of it under a valid name."""
    doomed = folder.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    folder.rename(doomed)
    shutil.rmtree(doomed)


def remove_leftovers(parent: Path) -> tuple[str, ...]:
    """Removes what crashes left; only the one process that writes here may call it."""
    leftovers = sorted(parent.glob(f"{TEMPORARY}*")) if parent.is_dir() else []
    for folder in leftovers:
        shutil.rmtree(folder)
    return tuple(folder.name for folder in leftovers)


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
