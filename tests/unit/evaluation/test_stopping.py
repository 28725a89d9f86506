"""A hosted server's process is stopped, gently if it listens and by force if it does not."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from evaluation import hosting
from evaluation.hosting import BOOT, stop

POLITE = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); print(flush=True); signal.pause()"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True)\nwhile True: signal.pause()"


def started(code: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    process.stdout.readline()  # its handler stands
    return process


@pytest.mark.parametrize(("code", "returned"), [(POLITE, 0), (DEAF, -signal.SIGKILL)])
def test_it_is_gone_afterwards_and_ctrl_c_works_again(
    code: str, returned: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosting, "STOP_S_MAX", 5.0 if code is POLITE else 0.2)
    before = signal.getsignal(signal.SIGINT)
    with started(code) as process:
        stop(process)
        assert process.returncode == returned
    assert signal.getsignal(signal.SIGINT) is before


def test_one_that_ended_on_its_own_is_no_trouble() -> None:
    with started("print(flush=True)") as process:
        process.wait()
        stop(process)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
def test_a_server_does_not_start_for_a_process_that_is_gone() -> None:
    done = subprocess.run([sys.executable, "-c", BOOT, "1", "/nowhere"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "is gone" in done.stderr
