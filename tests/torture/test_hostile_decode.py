"""Hostile pictures against the decoding pool: each is decoded right or refused with its code, and the pool lives."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stemma.config import DecodeSettings
from stemma.errors import BadImage, StemmaError, Unavailable
from stemma.vision.decode import DecodePool

SETTINGS = DecodeSettings()


@pytest.fixture
def pool() -> Iterator[DecodePool]:
    """One child; on the way out the pool must still decode, and leave no process behind."""
    with DecodePool(SETTINGS, children=1) as made:
        yield made
        assert len(made.pids) <= 1
        pids = made.pids
    assert made.pids == ()
    assert not any(_exists(pid) for pid in pids)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _judge(pool: DecodePool, case: Any) -> str | None:
    """What is wrong with the answer to a case; None when nothing is."""
    try:
        pixels = pool.decode(case.body)
    except StemmaError as error:
        if error.code != case.expect or (case.subject and error.subject != case.subject):
            return f"{error.code} about {error.subject}: {error.detail}"
        return None if len(error.detail) > 20 else f"too short a sentence: {error.detail}"
    if case.expect != "decoded":
        return f"decoded to {pixels.rgb_HWC.shape}"
    if case.size and (pixels.width, pixels.height) != case.size:
        return f"of size {pixels.width} x {pixels.height}"
    if case.note not in " ".join(pixels.notes):
        return f"noted as {pixels.notes}"
    if case.rgb_HWC is None:
        return None
    if pixels.rgb_HWC.shape != case.rgb_HWC.shape:
        return f"of shape {pixels.rgb_HWC.shape}"
    apart = float(np.abs(pixels.rgb_HWC.astype(int) - case.rgb_HWC).mean())
    return f"{apart:.2f} steps away" if apart > case.slack else None


def test_every_hostile_picture_is_decoded_right_or_refused_with_its_code(
    hostile_corpus: list[Any], good_jpeg: bytes, pool: DecodePool
) -> None:
    assert {case.number for case in hostile_corpus} >= {*range(1, 20), 22}
    want = pool.decode(good_jpeg)
    child = pool.pids
    wrong, slowest = [], 0.0
    for case in hostile_corpus:
        start = time.monotonic()
        problem = _judge(pool, case)
        slowest = max(slowest, time.monotonic() - start)
        if problem:
            wrong.append(f"{case.number} {case.name}: expected {case.expect}, was {problem}")
        if case.number not in (3, 12):
            assert np.array_equal(pool.decode(good_jpeg).rgb_HWC, want.rgb_HWC), f"after {case.name}"
    assert not wrong, "\n".join(wrong)
    assert slowest < SETTINGS.wall_s_max
    assert pool.pids == child, "refusals must be the child's answers, not its death"


def _solid_png(side: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGBA", (side, side), (9, 9, 9, 9)).save(out, "PNG", compress_level=1)
    return out.getvalue()


def test_a_picture_that_outgrows_its_memory_costs_itself_alone(good_jpeg: bytes) -> None:
    settings = DecodeSettings(memory_bytes_max=192 * 1024 * 1024)
    with DecodePool(settings, children=1) as pool:
        with pytest.raises(BadImage, match="memory"):
            pool.decode(_solid_png(7000))
        assert pool.decode(good_jpeg).width


def _endless_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated: little data, a pass over all blocks each time."""
    out = io.BytesIO()
    Image.new("L", (side, side), 90).save(out, "JPEG", progressive=True)
    body = out.getvalue()
    last = body[body.rindex(b"\xff\xda") : -2]
    return body[:-2] + last * scans + body[-2:]


def test_a_picture_that_never_ends_runs_out_of_processor_time(good_jpeg: bytes) -> None:
    with DecodePool(DecodeSettings(cpu_s_max=1, wall_s_max=200), children=1) as pool:
        with pytest.raises(BadImage, match="time") as caught:
            pool.decode(_endless_scans(6000, 3000))
        assert caught.value.subject == "cpu_s_max"
        assert pool.decode(good_jpeg).width


def test_a_child_that_stands_still_runs_out_of_wall_time(good_jpeg: bytes) -> None:
    with DecodePool(DecodeSettings(wall_s_max=0.3), children=1) as pool:
        pool.decode(good_jpeg)
        (pid,) = pool.pids
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(BadImage, match="time") as caught:
            pool.decode(good_jpeg)
        assert caught.value.subject == "wall_s_max"
        assert not _exists(pid)
        assert pool.decode(good_jpeg).width


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_child_that_died_between_pictures_is_replaced_unnoticed(good_jpeg: bytes, kind: signal.Signals) -> None:
    with DecodePool(SETTINGS, children=1) as pool:
        want = pool.decode(good_jpeg).rgb_HWC
        (pid,) = pool.pids
        os.kill(pid, kind)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert np.array_equal(pool.decode(good_jpeg).rgb_HWC, want)
        assert pool.pids != (pid,)


def test_a_child_that_dies_at_work_costs_one_picture(good_jpeg: bytes) -> None:
    with DecodePool(SETTINGS, children=1) as pool:
        pool.decode(good_jpeg)
        (pid,) = pool.pids
        os.kill(pid, signal.SIGSTOP)
        refused: list[BadImage] = []

        def ask() -> None:
            with pytest.raises(BadImage) as caught:
                pool.decode(good_jpeg)
            refused.append(caught.value)

        asker = threading.Thread(target=ask)
        asker.start()
        os.kill(pid, signal.SIGKILL)
        asker.join()
        if refused[0].subject:  # killed before the body was sent, it would have been replaced instead
            assert refused[0].subject == "memory_bytes_max"
        assert pool.decode(good_jpeg).width


def test_closing_answers_everyone_who_waits(good_jpeg: bytes) -> None:
    pool = DecodePool(SETTINGS, children=1)
    pool.decode(good_jpeg)
    (pid,) = pool.pids
    os.kill(pid, signal.SIGSTOP)
    said: list[StemmaError] = []

    def ask() -> None:
        with pytest.raises(Unavailable) as caught:
            pool.decode(good_jpeg)
        said.append(caught.value)

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    pool.close()
    for asker in askers:
        asker.join(timeout=20)
    assert len(said) == 3
    assert not _exists(pid)
