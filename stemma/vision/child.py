"""A decoding child: reads one picture at a time from standard input, answers pixels or a refusal on standard output.

Started by ``decode.DecodePool`` as ``python -I -m stemma.vision.child LIMITS`` with an empty environment. It bounds
itself before the first picture: address space, open files, no file growth, no core, no new privileges, no network and
no new processes (``confine``), death with its parent; and before each picture its CPU time. It may be
crashed or even taken over by a picture: the parent believes nothing but frames of the sizes agreed here.

Frames: a request is its length (uint32, little endian) and the body. A reply is ``REPLY`` (bytes of JSON, bytes of
pixels), the JSON, the pixels row by row as RGB.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import resource
import signal
import struct
import sys
import time
from typing import Any, BinaryIO

from stemma.errors import StemmaError
from stemma.vision.confine import forbid_network_and_processes
from stemma.vision.raster import Limits, raster, require_pillow

REQUEST = struct.Struct("<I")
REPLY = struct.Struct("<II")
JSON_BYTES_MAX = 4096

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


def main(arguments: list[str]) -> None:
    """Serve pictures until standard input ends."""
    given = json.loads(arguments[0])
    cpu_s = int(given.pop("cpu_s_max"))
    memory_bytes, files = int(given.pop("memory_bytes_max")), int(given.pop("files_max"))
    limits = Limits(**{**given, "formats": tuple(given["formats"])})
    requests, replies = sys.stdin.buffer, _private_output()
    try:
        require_pillow()
        _bound(memory_bytes, files)
        confined = forbid_network_and_processes()
    except (StemmaError, OSError, ValueError) as error:
        _reply(replies, {"refused": f"{error}"})
        return
    _reply(replies, {"ready": os.getpid(), "confined": confined})
    while (body := _next_body(requests, limits.image_bytes_max)) is not None:
        _allow_cpu(cpu_s)
        said, pixels = _answer(body, limits)
        _reply(replies, said, pixels)


def _private_output() -> BinaryIO:
    """Standard output for our frames alone: what a C library prints there goes to standard error instead."""
    private = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(private, "wb")


def _bound(memory_bytes: int, files: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_PDEATHSIG, signal.SIGKILL), (_PR_SET_NO_NEW_PRIVS, 1)):
        if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), f"prctl {option} was refused")
    bounds = (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_NOFILE, files),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    )
    for kind, value in bounds:
        resource.setrlimit(kind, (value, value))


def _allow_cpu(cpu_s: int) -> None:
    """CPU time for one more picture. The limit is on the process's total in whole seconds, so it is moved each time."""
    used_s = math.ceil(time.process_time())
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (used_s + cpu_s, hard))


def _next_body(requests: BinaryIO, bytes_max: int) -> bytes | None:
    head = requests.read(REQUEST.size)
    if len(head) < REQUEST.size:
        return None
    (length,) = REQUEST.unpack(head)
    assert length <= bytes_max
    body = requests.read(length)
    return body if len(body) == length else None


def _answer(body: bytes, limits: Limits) -> tuple[dict[str, Any], bytes]:
    try:
        done = raster(body, limits)
    except StemmaError as error:
        return {"error": error.code, "detail": error.detail[:1000], "subject": error.subject}, b""
    rows, columns, _ = done.rgb_HWC.shape
    said = {
        "rows": rows,
        "columns": columns,
        "width": done.width,
        "height": done.height,
        "format": done.format,
        "notes": done.notes,
    }
    return said, done.rgb_HWC.tobytes()


def _reply(replies: BinaryIO, said: dict[str, Any], pixels: bytes = b"") -> None:
    text = json.dumps(said).encode()
    assert len(text) <= JSON_BYTES_MAX
    replies.write(REPLY.pack(len(text), len(pixels)) + text + pixels)
    replies.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
