"""The pool's walls: what a child may do, and what happens when it lies, dies or is replaced (torture has more)."""

from __future__ import annotations

import os
import select
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from stemma.config import DecodeSettings
from stemma.errors import BadImage, Overloaded, Unavailable, UnsupportedType
from stemma.vision.decode import DecodePool, decode

Rgb = NDArray[np.uint8]
Save = Callable[..., bytes]
SETTINGS = DecodeSettings()


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(SETTINGS, children=2) as made:
        yield made


@pytest.fixture(scope="module")
def bodies(photo_like: Callable[..., Rgb], encoded: Save) -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 8
    return [
        encoded(photo_like(700, 300, 1), "JPEG", exif=exif),
        encoded(photo_like(1300, 700, 2), "JPEG"),
        encoded(photo_like(200, 300, 3), "PNG"),
        encoded(np.dstack([photo_like(600, 300, 4), photo_like(600, 300, 5)[..., 0]]), "PNG"),
        encoded(photo_like(600, 90, 6), "WEBP"),
        encoded(photo_like(90, 600, 7), "GIF"),
    ]


def test_the_pool_and_this_process_give_the_same_pixels(pool: DecodePool, bodies: list[bytes]) -> None:
    for body in bodies:
        walled, plain = pool.decode(body), decode(body, SETTINGS)
        assert np.array_equal(walled.rgb_HWC, plain.rgb_HWC)
        assert walled.rgb_HWC.flags.writeable
        for name in ("width", "height", "sha256", "format", "notes"):
            assert getattr(walled, name) == getattr(plain, name)


def test_refusals_are_the_same_and_keep_their_child(pool: DecodePool, bodies: list[bytes]) -> None:
    pool.decode(bodies[0])
    before = pool.pids
    for body in (b"", b"<svg >", bodies[0][:2000], bodies[2][:40], b"GIF89a"):
        with pytest.raises((BadImage, UnsupportedType)) as plain:
            decode(body, SETTINGS)
        with pytest.raises(type(plain.value)) as walled:
            pool.decode(body)
        assert (walled.value.detail, walled.value.subject) == (plain.value.detail, plain.value.subject)
    assert pool.pids == before


def test_many_threads_share_few_children(pool: DecodePool, bodies: list[bytes]) -> None:
    want = [decode(body, SETTINGS).rgb_HWC for body in bodies]
    with ThreadPoolExecutor(8) as threads:
        done = list(threads.map(pool.decode, bodies * 4))
    assert all(np.array_equal(pixels.rgb_HWC, want[n % len(want)]) for n, pixels in enumerate(done))
    assert len(pool.pids) <= 2


def test_a_child_outlives_the_thread_that_asked_for_it(bodies: list[bytes]) -> None:
    # PR_SET_PDEATHSIG follows the thread that started the child: were that the asker, its end would kill the child.
    with DecodePool(SETTINGS, children=1) as pool:
        asker = threading.Thread(target=pool.decode, args=(bodies[2],))
        asker.start()
        asker.join()
        before = pool.pids
        assert len(before) == 1
        pool.decode(bodies[2])
        assert pool.pids == before


def test_a_child_dies_with_its_parent(bodies: list[bytes], tmp_path: Path) -> None:
    picture = tmp_path / "picture"
    picture.write_bytes(bodies[2])
    script = (
        "import os, sys, pathlib, signal; from stemma.config import DecodeSettings;"
        "from stemma.vision.decode import DecodePool;"
        "pool = DecodePool(DecodeSettings(), 1); pool.decode(pathlib.Path(sys.argv[1]).read_bytes());"
        # Stopped, it cannot see that its input has ended: only the kernel can end it.
        "os.kill(pool.pids[0], signal.SIGSTOP); print(pool.pids[0], flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(picture)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
        gone, _, _ = select.select([child], [], [], 20)
        os.close(child)
    assert gone


def test_the_walls_of_a_child(pool: DecodePool, bodies: list[bytes]) -> None:
    pool.decode(bodies[2])
    for pid in pool.pids:
        proc = Path(f"/proc/{pid}")
        limits = {line[:26].strip(): line[26:].split()[:2] for line in (proc / "limits").read_text().splitlines()}
        assert limits["Max address space"] == [str(SETTINGS.memory_bytes_max)] * 2
        assert limits["Max open files"] == [str(SETTINGS.files_max)] * 2
        assert limits["Max file size"] == ["0", "0"]
        assert limits["Max core file size"] == ["0", "0"]
        assert 1 <= int(limits["Max cpu time"][0]) <= 60
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines() if ":" in line)
        assert status["NoNewPrivs"].strip() == "1"
        assert status["Seccomp"].strip() == "2"
        names = {entry.split(b"=")[0] for entry in (proc / "environ").read_bytes().split(b"\0") if entry}
        assert names <= {b"OPENBLAS_NUM_THREADS", b"LC_CTYPE"}
        assert len(list((proc / "fd").iterdir())) <= 6


def test_a_confined_process_can_neither_connect_nor_start_another() -> None:
    script = """
import ctypes, os, socket, subprocess
ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
from stemma.vision.confine import forbid_network_and_processes
assert forbid_network_and_processes()
for attempt in (socket.socket, socket.socketpair, os.fork, lambda: os.execv("/bin/true", ["true"])):
    try:
        attempt()
    except PermissionError:
        continue
    raise SystemExit(f"{attempt} was allowed")
assert open("/proc/self/stat").read() and bytearray(1 << 24)
"""
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_children_are_replaced_after_their_share_of_pictures(bodies: list[bytes]) -> None:
    with DecodePool(DecodeSettings(respawn_after=2), children=1) as pool:
        seen = []
        for _ in range(5):
            pool.decode(bodies[2])
            seen.append(pool.pids)
        # After the 2nd and 4th picture the place stands empty until the next one comes.
        assert [len(pids) for pids in seen] == [1, 0, 1, 0, 1]
        assert len({pids for pids in seen if pids}) == 3


AGREED = {"rows": 1, "columns": 1, "width": 1, "height": 1, "format": "PNG", "notes": []}
LIES = {
    "pixels of another size": f"reply({AGREED | {'rows': 9}}, b'abc')",
    "a huge size": f"reply({AGREED | {'width': 1 << 40}}, b'abc')",
    "a format that is off": f"reply({AGREED | {'format': 'EPS'}}, b'abc')",
    "text for a size": f"reply({AGREED | {'rows': '1'}}, b'abc')",
    "text for notes": f"reply({AGREED | {'notes': 'none'}}, b'abc')",
    "no JSON": "out.write(struct.pack('<II', 3, 0) + b'{{{')",
    "no object": "out.write(struct.pack('<II', 2, 0) + b'[]')",
    "too long a text": "out.write(struct.pack('<II', 1 << 30, 0)); out.flush(); read()",  # and waits: no need to
    "too many pixels": "out.write(struct.pack('<II', 2, 1 << 31))",
    "nothing": "pass",
    "half a frame": "out.write(b'abcde')",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_child_costs_its_picture_and_is_replaced(
    lie: str, bodies: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _impersonate(f'reply({{"ready": 1}}); read(); {LIES[lie]}; out.flush()', tmp_path, monkeypatch)
    with DecodePool(SETTINGS, children=1) as pool:
        with pytest.raises(BadImage, match="broke the decoder"):
            pool.decode(bodies[2])
        monkeypatch.undo()
        assert pool.decode(bodies[2]).width == 200


def test_a_child_that_cannot_start_is_no_fault_of_the_picture(
    bodies: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for says, match in (('reply({"refused": "no such limit"})', "no such limit"), ("pass", "did not start")):
        with monkeypatch.context() as patch, DecodePool(SETTINGS, children=1) as pool:
            _impersonate(says, tmp_path, patch)
            with pytest.raises(Unavailable, match=match):
                pool.decode(bodies[2])
            patch.setattr(sys, "executable", str(tmp_path / "missing"))
            with pytest.raises(Unavailable, match="can be started"):
                pool.decode(bodies[2])


def _impersonate(act: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Every child started from now on runs ``act`` instead."""
    script = folder / "child"
    script.write_text(
        f"#!{sys.executable}\nimport json, struct, sys\nout = sys.stdout.buffer\n"
        "def reply(said, pixels=b''):\n"
        "    text = json.dumps(said).encode()\n"
        "    out.write(struct.pack('<II', len(text), len(pixels)) + text + pixels)\n"
        "    out.flush()\n"
        "def read():\n"
        "    return sys.stdin.buffer.read(struct.unpack('<I', sys.stdin.buffer.read(4))[0])\n"
        f"{act}\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    patch.setattr(sys, "executable", str(script))


def test_waiting_for_a_child_is_bounded(bodies: list[bytes]) -> None:
    with DecodePool(DecodeSettings(queue_s_max=0.05), children=1) as pool:
        pool.decode(bodies[2])
        (pid,) = pool.pids
        os.kill(pid, signal.SIGSTOP)
        with ThreadPoolExecutor(2) as threads:
            asked = [threads.submit(pool.decode, bodies[2]) for _ in range(2)]
            (first,), (second,) = wait(asked, return_when=FIRST_COMPLETED)
            os.kill(pid, signal.SIGCONT)
            with pytest.raises(Overloaded, match="free within") as late:
                first.result()
            assert late.value.retry_after_s
            assert second.result().width == 200


def test_a_closed_pool_refuses_and_closes_twice(bodies: list[bytes]) -> None:
    pool = DecodePool(SETTINGS, children=1)
    pool.decode(bodies[2])
    pool.close()
    pool.close()
    assert pool.pids == ()
    with pytest.raises(Unavailable, match="closed"):
        pool.decode(bodies[2])
