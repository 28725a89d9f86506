"""The child's side of the protocol, spoken to over plain pipes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stemma.config import DecodeSettings
from stemma.vision.child import REPLY, REQUEST
from stemma.vision.decode import decode
from stemma.vision.raster import Limits

Rgb = NDArray[np.uint8]
Save = Callable[..., bytes]
SETTINGS = DecodeSettings()
BOUNDS = ("cpu_s_max", "memory_bytes_max", "files_max")


class Talk:
    """One child and the frames exchanged with it."""

    def __init__(self, **changes: Any) -> None:
        given = SETTINGS.model_dump(include={*Limits.__dataclass_fields__, *BOUNDS}) | changes
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-m", "stemma.vision.child", json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
        )
        assert self.process.stdin and self.process.stdout
        self.requests, self.replies = self.process.stdin, self.process.stdout

    def send(self, body: bytes) -> None:
        self.requests.write(REQUEST.pack(len(body)) + body)
        self.requests.flush()

    def hear(self) -> tuple[dict[str, Any], bytes]:
        text_bytes, pixel_bytes = REPLY.unpack(self.replies.read(REPLY.size))
        return json.loads(self.replies.read(text_bytes)), self.replies.read(pixel_bytes)

    def end(self) -> tuple[int, bytes]:
        """Close its input; exit status and whatever it still said."""
        self.requests.close()
        rest = self.replies.read()
        self.replies.close()
        return self.process.wait(20), rest


@pytest.fixture
def talk() -> Iterator[Talk]:
    made = Talk()
    yield made
    if made.process.poll() is None:
        made.process.kill()
        made.process.wait()
    for pipe in (made.requests, made.replies):
        pipe.close()


def test_it_greets_answers_in_order_and_leaves_when_its_input_ends(talk: Talk, photo: Rgb, encoded: Save) -> None:
    greeting, nothing = talk.hear()
    assert greeting["ready"] == talk.process.pid
    assert nothing == b""
    png, bad = encoded(photo, "PNG"), encoded(photo, "PNG")[:99]
    for body in (png, bad, png):
        talk.send(body)
    first, pixels = talk.hear()
    refusal, empty = talk.hear()
    again, same = talk.hear()
    want = decode(png, SETTINGS)
    assert pixels == same == want.rgb_HWC.tobytes()
    assert first == again == {
        "rows": 120, "columns": 160, "width": 160, "height": 120, "format": "PNG", "notes": []
    }  # fmt: skip
    assert (refusal["error"], refusal["subject"], empty) == ("bad_image", "PNG", b"")
    assert talk.end() == (0, b"")


def test_a_request_that_breaks_off_is_no_request(talk: Talk) -> None:
    talk.hear()
    talk.requests.write(REQUEST.pack(5000) + b"only this")
    talk.requests.flush()
    assert talk.end() == (0, b"")


def test_a_request_over_the_limit_is_a_broken_parent(talk: Talk) -> None:
    talk.hear()
    talk.requests.write(REQUEST.pack(SETTINGS.image_bytes_max + 1))
    talk.requests.flush()
    status, rest = talk.end()
    assert status == 1
    assert rest == b""


def test_what_a_library_prints_does_not_get_between_the_frames(photo: Rgb, encoded: Save) -> None:
    talk = Talk(formats=["TIFF"])
    talk.hear()
    body = bytearray(encoded(photo, "TIFF", compression="tiff_lzw"))
    body[30:300] = bytes(270)  # libtiff complains aloud
    talk.send(bytes(body))
    talk.send(encoded(photo, "TIFF"))
    said, _ = talk.hear()
    good, pixels = talk.hear()
    assert "error" in said or said["format"] == "TIFF"
    assert (good["format"], len(pixels)) == ("TIFF", photo.size)
    assert talk.end() == (0, b"")


def test_bounds_that_cannot_be_set_are_said_before_any_picture() -> None:
    talk = Talk(files_max=-5)
    said, _ = talk.hear()
    assert "refused" in said
    status, _ = talk.end()
    assert status == 0
