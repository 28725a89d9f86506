"""Where hostile input stops: a pool of decoding children, and the working copies that follow from what they return.

A child that dies, hangs, grows or lies costs one picture a ``BadImage``; the pool replaces it and goes on. What comes
back is checked against the agreed sizes, so a taken-over child can forge pixels and nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stemma.config import DecodeSettings
from stemma.errors import BadImage, Corrupt, Overloaded, StemmaError, TooLarge, Unavailable, UnsupportedType
from stemma.flow import Pixels
from stemma.vision.child import JSON_BYTES_MAX, REPLY, REQUEST
from stemma.vision.raster import Limits, Raster, check_body, raster, require_pillow

START_S_MAX = 60.0
"""Time a child has to come up: 0.2 s alone, seconds on a machine whose cores are all taken."""

START_ATTEMPTS_MAX = 3
"""Children that die one after the other while starting, before the caller hears of it."""

PIPE_BYTES = 1024 * 1024
"""A picture at working size fits whole; with the usual 64 KiB the two processes take turns a dozen times."""

WORKING_QUALITY = 90

_REFUSALS: dict[str, type[StemmaError]] = {kind.code: kind for kind in (BadImage, TooLarge, UnsupportedType)}


def decode(body: bytes, settings: DecodeSettings) -> Pixels:
    """Decode in THIS process: for tests and trusted bytes. Same pixels as the pool, without its walls.

    Raises BadImage, UnsupportedType, TooLarge.
    """
    return _pixels(body, raster(body, _limits(settings)))


def working_copy(pixels: Pixels) -> bytes:
    """What is kept of an original: JPEG, quality 90, no chroma subsampling, of ``pixels.rgb_HWC``."""
    out = io.BytesIO()
    Image.fromarray(pixels.rgb_HWC).save(out, "JPEG", quality=WORKING_QUALITY, subsampling=0)
    return out.getvalue()


def read_working_copy(body: bytes) -> NDArray[np.uint8]:
    """Bytes that ``working_copy`` made, as RGB uint8 [H, W, 3]. Raises Corrupt when they are not."""
    try:
        with Image.open(io.BytesIO(body), formats=("JPEG",)) as picture:
            return np.array(picture.convert("RGB"), np.uint8)
    except (OSError, SyntaxError) as error:
        raise Corrupt(f"a working copy of {len(body)} bytes is damaged: {error}", subject="pixels") from error


def _limits(settings: DecodeSettings) -> Limits:
    return Limits(
        formats=settings.formats,
        image_bytes_max=settings.image_bytes_max,
        pixels_max=settings.pixels_max,
        side_px_max=settings.side_px_max,
        side_px_min=settings.side_px_min,
        ancillary_bytes_max=settings.ancillary_bytes_max,
        working_side_px=settings.working_side_px,
    )


def _pixels(body: bytes, done: Raster) -> Pixels:
    return Pixels(
        rgb_HWC=done.rgb_HWC,
        width=done.width,
        height=done.height,
        sha256=hashlib.sha256(body).hexdigest(),
        format=done.format,
        notes=done.notes,
    )


class _Died(Exception):
    """The child ended, or said something that was not agreed, before it answered."""


class _Late(Exception):
    """The child had its wall time."""


class _Child:
    """One process and its two pipes. Used by one thread at a time."""

    def __init__(self, settings: DecodeSettings) -> None:
        given = settings.model_dump(
            include={*Limits.__dataclass_fields__, "cpu_s_max", "memory_bytes_max", "files_max"}
        )
        self.pictures = 0
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-m", "stemma.vision.child", json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # One thread: each of numpy's would take 8 MB of the child's address space and could never be started.
            env={"OPENBLAS_NUM_THREADS": "1"},
            cwd="/",
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        for pipe in (self._to, self._from):
            with contextlib.suppress(OSError):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        os.set_blocking(self._to, False)
        os.set_blocking(self._from, False)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def await_ready(self) -> None:
        """Raises _Died when it ends instead, Unavailable when it refuses or takes too long."""
        try:
            said, _ = self._receive(time.monotonic() + START_S_MAX, pixels_max=0)
        except _Late as error:
            raise Unavailable(f"a decoding child was not up within {START_S_MAX:g} s", subject="decode") from error
        if "ready" not in said:
            raise Unavailable(f"a decoding child refused to start: {said.get('refused')}", subject="decode")

    def ask(self, body: bytes, wall_s: float, side_px: int) -> tuple[dict[str, Any], bytearray]:
        """Send one picture and wait for its answer. Raises _Died, _Late."""
        deadline = time.monotonic() + wall_s
        self.pictures += 1
        self._send(REQUEST.pack(len(body)), deadline)
        self._send(body, deadline)
        return self._receive(deadline, pixels_max=side_px * side_px * 3)

    def kill(self) -> None:
        """By its own pid, and only while that is still its own."""
        self._process.kill()

    def end(self, patience_s: float = 0.0) -> int:
        """Give it a moment to be gone by itself, kill, reap, close the pipes; returns its status (negative: signal)."""
        if patience_s:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=patience_s)
        self._process.kill()
        code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        return code

    def _send(self, data: bytes, deadline: float) -> None:
        rest = memoryview(data)
        while rest:
            self._wait(self._to, select.POLLOUT, deadline)
            try:
                rest = rest[os.write(self._to, rest) :]
            except BlockingIOError:
                continue
            except BrokenPipeError as error:
                raise _Died("it closed its input") from error

    def _receive(self, deadline: float, pixels_max: int) -> tuple[dict[str, Any], bytearray]:
        text_bytes, pixel_bytes = REPLY.unpack(self._read(REPLY.size, deadline))
        if text_bytes > JSON_BYTES_MAX or pixel_bytes > pixels_max:
            raise _Died("it sent a frame that is too long")
        text, pixels = self._read(text_bytes, deadline), self._read(pixel_bytes, deadline)
        try:
            said = json.loads(text)
        except ValueError as error:
            raise _Died("it sent no JSON") from error
        if not isinstance(said, dict):
            raise _Died("it sent no object")
        return said, pixels

    def _read(self, size: int, deadline: float) -> bytearray:
        got = bytearray()
        while len(got) < size:
            self._wait(self._from, select.POLLIN, deadline)
            try:
                piece = os.read(self._from, size - len(got))
            except BlockingIOError:
                continue
            if not piece:
                raise _Died("it closed its output")
            got += piece
        return got

    @staticmethod
    def _wait(pipe: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(pipe, event)
        left_ms = (deadline - time.monotonic()) * 1000
        if left_ms <= 0 or not poll.poll(left_ms):
            raise _Late("no answer in time")


class DecodePool:
    """Decoding children, started when first needed and kept. Thread-safe; a context manager.

    ``children`` is how many pictures are decoded at once (default ``children_per_core`` for each core). Raises
    Unavailable when the installed Pillow is below ``raster.PILLOW_MIN``.
    """

    def __init__(self, settings: DecodeSettings, children: int | None = None) -> None:
        require_pillow()
        self._settings = settings
        self._limits = _limits(settings)
        count = children or settings.children_per_core * (os.cpu_count() or 1)
        # A place holds a child between pictures, or None where there is none yet. LIFO: warm children first.
        self._places: queue.LifoQueue[_Child | None] = queue.LifoQueue()
        for _ in range(count):
            self._places.put(None)
        self._lock = threading.Lock()
        self._alive: set[_Child] = set()
        self._closed = False
        # PR_SET_PDEATHSIG fires when the THREAD that started the child ends, so one thread that stays starts them all.
        self._orders: queue.SimpleQueue[queue.SimpleQueue[_Child | OSError] | None] = queue.SimpleQueue()
        self._starter = threading.Thread(target=self._start_children, name="stemma-decode-starter", daemon=True)
        self._starter.start()

    def decode(self, body: bytes) -> Pixels:
        """The picture in ``body`` at working size. Blocks until a child is free and has answered.

        Raises BadImage, UnsupportedType, TooLarge; Overloaded when no child is free within ``queue_s_max``;
        Unavailable when the pool is closed or no child can be started.
        """
        check_body(body, self._limits)
        child = self._checkout()
        try:
            said, pixels = child.ask(body, self._settings.wall_s_max, self._limits.working_side_px)
            done = self._believe(said, pixels)
        except _Late as error:
            self._discard(child)
            self._refuse_if_closed()
            raise BadImage(
                f"decoding it took more time than {self._settings.wall_s_max:g} s", subject="wall_s_max"
            ) from error
        except _Died as error:
            # It closed its pipes; how it ended says whether it ran out of time or crashed.
            code = self._discard(child, patience_s=1.0)
            self._refuse_if_closed()
            raise self._cause(code) from error
        except BaseException:
            # A refusal keeps its child; anything else (an interrupt) leaves an answer in the pipe that is not ours.
            self._discard(child)
            raise
        if child.pictures < self._settings.respawn_after:
            self._give_back(child)
        else:
            self._discard(child)
        if isinstance(done, StemmaError):
            raise done
        return _pixels(body, done)

    def close(self) -> None:
        """End all children; pictures in work get Unavailable. Idempotent."""
        with self._lock:
            if not self._closed:
                self._orders.put(None)
            self._closed = True
            children = list(self._alive)
        for child in children:
            # The thread that uses it sees its pipe close; burying it is that thread's to do.
            child.kill()
        self._starter.join()
        self._drain()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def pids(self) -> tuple[int, ...]:
        """Processes of the pool, for tests and for a person who looks."""
        with self._lock:
            return tuple(sorted(child.pid for child in self._alive))

    def _checkout(self) -> _Child:
        self._refuse_if_closed()
        try:
            child = self._places.get(timeout=self._settings.queue_s_max)
        except queue.Empty:
            raise Overloaded(
                f"no decoding child was free within {self._settings.queue_s_max:g} s", subject="decode", retry_after_s=1
            ) from None
        try:
            if child is not None and child.alive and not self._closed:
                return child
            if child is not None:
                self._bury(child)
            return self._start()
        except BaseException:
            self._give_back(None)
            raise

    def _start(self) -> _Child:
        """A child that is ready. One that dies while starting is tried again: that is no picture's fault."""
        for left in reversed(range(START_ATTEMPTS_MAX)):
            child = self._order()
            try:
                child.await_ready()
            except _Died as error:
                self._bury(child)
                self._refuse_if_closed()
                if not left:
                    raise Unavailable(f"a decoding child did not start: {error}", subject="decode") from error
            except BaseException:
                self._bury(child)
                raise
            else:
                return child
        raise AssertionError("the last attempt returns or raises")

    def _order(self) -> _Child:
        """A new process, by the thread that starts them all."""
        answer: queue.SimpleQueue[_Child | OSError] = queue.SimpleQueue()
        with self._lock:
            # Under the lock, so that no order comes after the last one.
            self._refuse_if_closed()
            self._orders.put(answer)
        started = answer.get(timeout=START_S_MAX)
        if isinstance(started, OSError):
            raise Unavailable(f"no decoding child can be started: {started}", subject="decode") from started
        with self._lock:
            self._alive.add(started)
        return started

    def _start_children(self) -> None:
        while (answer := self._orders.get()) is not None:
            try:
                answer.put(_Child(self._settings))
            except OSError as error:
                answer.put(error)

    def _bury(self, child: _Child, patience_s: float = 0.0) -> int:
        with self._lock:
            self._alive.discard(child)
        return child.end(patience_s)

    def _discard(self, child: _Child, patience_s: float = 0.0) -> int:
        code = self._bury(child, patience_s)
        self._give_back(None)
        return code

    def _give_back(self, child: _Child | None) -> None:
        self._places.put(child)
        if self._closed:
            self._drain()

    def _drain(self) -> None:
        """After closing: bury what stands idle, keep the places so that waiting threads wake and are refused."""
        idle = []
        while True:
            try:
                idle.append(self._places.get_nowait())
            except queue.Empty:
                break
        for child in idle:
            if child is not None:
                self._bury(child)
            self._places.put(None)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise Unavailable("the decoding pool is closed", subject="decode")

    def _believe(self, said: dict[str, Any], pixels: bytearray) -> Raster | StemmaError:
        """What a child said, checked. Raises _Died when it is not what was agreed."""
        if "error" in said:
            kind = _REFUSALS.get(str(said["error"]), BadImage)
            subject = said.get("subject")
            return kind(str(said.get("detail")), subject=None if subject is None else str(subject))
        sides = [said.get(name) for name in ("rows", "columns", "width", "height")]
        notes, format = said.get("notes"), said.get("format")
        whole = all(isinstance(side, int) and 1 <= side <= self._limits.side_px_max for side in sides)
        if not whole or format not in self._limits.formats or not isinstance(notes, list):
            raise _Died("it sent an answer that was not agreed")
        rows, columns, width, height = (int(side or 0) for side in sides)
        if rows * columns * 3 != len(pixels) or max(rows, columns) > self._limits.working_side_px:
            raise _Died("it sent pixels of another size than it said")
        rgb_HWC = np.frombuffer(pixels, np.uint8).reshape(rows, columns, 3)
        return Raster(
            rgb_HWC=rgb_HWC, width=width, height=height, format=str(format), notes=tuple(str(note) for note in notes)
        )

    def _cause(self, code: int) -> BadImage:
        if code == -signal.SIGXCPU:
            return BadImage(f"decoding it took more time than {self._settings.cpu_s_max} s of CPU", subject="cpu_s_max")
        how = f"signal {-code}" if code < 0 else f"status {code}"
        return BadImage(
            f"decoding it broke the decoder ({how}); it may need more memory than {self._settings.memory_bytes_max}"
            " bytes",
            subject="memory_bytes_max",
        )
