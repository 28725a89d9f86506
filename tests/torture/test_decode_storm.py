"""The decoding pool under fire: children killed at random while many threads ask, and files mutated by the thousand."""

from __future__ import annotations

import io
import os
import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from stemma.config import DecodeSettings
from stemma.errors import BadImage, TooLarge, Unavailable, UnsupportedType
from stemma.vision.decode import DecodePool, decode

SETTINGS = DecodeSettings()


def _seeds() -> list[bytes]:
    """One small file of every kind that is decoded by default."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 4), np.uint8))
    kinds = (
        ("JPEG", "RGB", {}),
        ("JPEG", "L", {"progressive": True}),
        ("JPEG", "CMYK", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {}),
        ("PNG", "1", {}),
        ("WEBP", "RGBA", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("GIF", "P", {}),
    )
    bodies = []
    for format, mode, options in kinds:
        out = io.BytesIO()
        noise.convert(mode).save(out, format, **options)
        bodies.append(out.getvalue())
    return bodies


def _mutated(body: bytes, rng: np.random.Generator) -> bytes:
    """A few bytes changed, put in or taken out, half of the time in the first 200, where the structure is."""
    out = bytearray(body)
    reach = min(len(out), 200 if rng.random() < 0.5 else len(out))
    for _ in range(rng.integers(1, 6)):
        at, how = int(rng.integers(reach)), int(rng.integers(3))
        piece = rng.bytes(int(rng.integers(1, 9)))
        out[at : at + (0 if how == 0 else len(piece))] = b"" if how == 2 else piece
        reach = min(reach, len(out))
    return bytes(out)


def _fuzz(pool: DecodePool, seed: int, rounds: int) -> Counter[str]:
    """Mutants through the pool; those that decode must give what this process gives."""
    rng, seeds, outcomes = np.random.default_rng(seed), _seeds(), Counter[str]()
    for _ in range(rounds):
        body = _mutated(seeds[int(rng.integers(len(seeds)))], rng)
        try:
            pixels = pool.decode(body)
        except (BadImage, TooLarge, UnsupportedType) as error:
            outcomes[error.code] += 1
        else:
            assert np.array_equal(pixels.rgb_HWC, decode(body, SETTINGS).rgb_HWC), f"seed {seed}"
            outcomes["decoded"] += 1
    return outcomes


def test_mutants_are_decoded_or_refused_by_the_same_child() -> None:
    with DecodePool(SETTINGS, children=1) as pool:
        pool.decode(_seeds()[0])
        before = pool.pids
        outcomes = _fuzz(pool, seed=1, rounds=400)
        assert pool.pids == before, "a mutant killed its child"
    assert outcomes["decoded"] and outcomes["bad_image"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 110))
def test_many_mutants(seed: int) -> None:
    with DecodePool(DecodeSettings(respawn_after=100_000), children=1) as pool:
        assert sum(_fuzz(pool, seed, rounds=20_000).values()) == 20_000


def _storm(seed: int, pictures: int) -> tuple[Counter[str], tuple[int, ...]]:
    """Eight threads ask while another kills children by their pids; outcomes, and every pid that was seen."""
    seeds, rng = _seeds(), np.random.default_rng(seed)
    want = [decode(body, SETTINGS).rgb_HWC for body in seeds]
    over, answers, seen = threading.Event(), threading.Semaphore(0), set[int]()

    def shoot(pool: DecodePool) -> None:
        while not over.is_set():
            # Paced by answers, not by a clock: on a slow machine every child would be shot while it starts.
            for _ in range(rng.integers(3, 12)):
                answers.acquire()
            pids = pool.pids
            seen.update(pids)
            if pids:
                # A pid that is listed is the pool's: children leave the list before they are reaped.
                _kill(pids[int(rng.integers(len(pids)))])

    def ask(pool: DecodePool, number: int) -> str:
        which = number % len(seeds)
        try:
            rgb_HWC = pool.decode(seeds[which]).rgb_HWC
        except (BadImage, Unavailable):  # killed at work, or twice while starting
            return "refused"
        finally:
            answers.release()
        return "right" if np.array_equal(rgb_HWC, want[which]) else "WRONG"

    with DecodePool(SETTINGS, children=2) as pool, ThreadPoolExecutor(8) as threads:
        shooter = threading.Thread(target=shoot, args=(pool,))
        shooter.start()
        try:
            outcomes = Counter(threads.map(lambda number: ask(pool, number), range(pictures)))
        finally:
            over.set()
            answers.release(12)
            shooter.join()
        seen.update(pool.pids)
        # The last shot may still be on its way to one of the two children; after those the pool must be whole again.
        assert [ask(pool, number) for number in range(4)][2:] == ["right", "right"]
        seen.update(pool.pids)
    assert pool.pids == ()
    return outcomes, tuple(seen)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _is_child(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
            return int(stat.read().rsplit(")", 1)[1].split()[1]) == os.getpid()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(("seed", "pictures"), [(1, 150), pytest.param(2, 5_000, marks=pytest.mark.slow)])
def test_children_killed_at_random_cost_pictures_and_nothing_else(seed: int, pictures: int) -> None:
    outcomes, seen = _storm(seed, pictures)
    assert outcomes["WRONG"] == 0
    assert sum(outcomes.values()) == pictures
    assert outcomes["right"] > 0
    assert not [pid for pid in seen if _is_child(pid)], "children were left behind"
