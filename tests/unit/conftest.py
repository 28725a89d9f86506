"""Unit tests stand alone: no network, no Ray."""

from __future__ import annotations

import socket
import sys
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit test that opens a connection or starts Ray fails with the reason."""
    connect = socket.socket.connect

    def refuse_network(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            raise AssertionError(f"a unit test opened a connection to {address!r}")
        connect(self, address)

    def refuse_ray(*_: Any, **__: Any) -> None:
        raise AssertionError("a unit test started Ray")

    monkeypatch.setattr(socket.socket, "connect", refuse_network)
    if "ray" in sys.modules:
        monkeypatch.setattr(sys.modules["ray"], "init", refuse_ray)
