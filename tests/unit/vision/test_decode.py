"""Decoding against an oracle: Pillow's plain way through the whole file, for every format, mode and orientation."""

from __future__ import annotations

import contextlib
import hashlib
import io
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from stemma.config import DecodeSettings
from stemma.errors import BadImage, Corrupt, StemmaError, TooLarge, Unavailable, UnsupportedType
from stemma.vision import raster
from stemma.vision.decode import decode, read_working_copy, working_copy

Rgb = NDArray[np.uint8]
Save = Callable[..., bytes]
SETTINGS = DecodeSettings()
WITH_TIFF = DecodeSettings(formats=("JPEG", "PNG", "WEBP", "GIF", "TIFF"))


def _oracle(body: bytes) -> Rgb:
    """Full size, turned, over white."""
    with Image.open(io.BytesIO(body)) as picture:
        turned = ImageOps.exif_transpose(picture)
        if turned.mode.startswith("I;16"):
            turned = Image.fromarray((np.asarray(turned) >> 8).astype(np.uint8))
        clear = turned.convert("RGBA")
    white = Image.new("RGBA", clear.size, "white")
    return np.array(Image.alpha_composite(white, clear).convert("RGB"))


MODES = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("L", "P"),
    "TIFF": ("1", "L", "RGB", "RGBA", "CMYK", "I;16"),
}
PAIRS = [(format, mode) for format, modes in MODES.items() for mode in modes]


def _picture(mode: str, width: int, height: int, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65_536, (height, width), np.uint16))
    return Image.fromarray(rng.integers(0, 256, (height, width, 4), np.uint8)).convert(mode)


@given(st.sampled_from(PAIRS), st.integers(32, 70), st.integers(32, 70), st.integers(1, 8), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_every_format_mode_and_orientation_is_what_the_oracle_sees(
    pair: tuple[str, str], width: int, height: int, orientation: int, seed: int
) -> None:
    format, mode = pair
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    options: dict[str, Any] = {} if format == "GIF" else {"exif": exif}
    _picture(mode, width, height, seed).save(out, format, **options)
    body = out.getvalue()
    pixels, want = decode(body, WITH_TIFF), _oracle(body)
    assert (pixels.height, pixels.width) == want.shape[:2]
    assert np.array_equal(pixels.rgb_HWC, want)
    assert pixels.format == format
    assert pixels.sha256 == hashlib.sha256(body).hexdigest()
    assert pixels.rgb_HWC.flags.writeable


@given(st.integers(32, 300), st.integers(32, 300))
@settings(max_examples=60, deadline=None)
def test_the_long_side_is_at_most_the_working_side_and_never_enlarged(width: int, height: int) -> None:
    out = io.BytesIO()
    Image.new("L", (width, height), 77).save(out, "PNG")
    pixels = decode(out.getvalue(), DecodeSettings(working_side_px=96))
    rows, columns, _ = pixels.rgb_HWC.shape
    assert (pixels.width, pixels.height) == (width, height)
    longer = max(width, height)
    assert max(rows, columns) == min(96, longer)
    assert min(rows, columns) == pytest.approx(min(width, height) * min(1, 96 / longer), abs=0.5)
    assert (pixels.rgb_HWC == 77).all()


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_reducing_is_what_a_full_decode_and_resize_gives(
    format: str, photo_like: Callable[..., Rgb], encoded: Save
) -> None:
    # 1151 is odd, so a draft at 1/2 ends in a column that is half outside the picture.
    grain = np.random.default_rng(0).normal(0, 12, (751, 1151, 3))
    photo = np.clip(photo_like(1151, 751) + grain, 0, 255).astype(np.uint8)
    body = encoded(photo, format, **({"quality": 92} if format == "JPEG" else {"compress_level": 1}))
    rgb_HWC = decode(body, DecodeSettings(working_side_px=256)).rgb_HWC
    whole = Image.fromarray(_oracle(body)).resize((256, 167), Image.Resampling.LANCZOS)
    apart = np.abs(rgb_HWC.astype(int) - np.asarray(whole))
    assert rgb_HWC.shape == (167, 256, 3)
    # Measured 0.51 and 3 steps on this grain; a draft at once to the working size leaves 1.07 and 5.
    assert apart.mean() < 0.75
    assert np.quantile(apart, 0.999) <= 4


def test_turning_exchanges_the_full_size_too(photo: Rgb, encoded: Save) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = decode(encoded(photo, "JPEG", exif=exif), SETTINGS)
    assert (pixels.width, pixels.height) == (photo.shape[0], photo.shape[1])
    assert pixels.rgb_HWC.shape[:2] == (pixels.height, pixels.width)


def test_lab_tiff_is_decoded_where_tiff_is_on(encoded: Save) -> None:
    body = encoded(Image.merge("LAB", [Image.new("L", (64, 64), level) for level in (136, 208, 195)]), "TIFF")
    assert np.abs(decode(body, WITH_TIFF).rgb_HWC.astype(int) - (255, 0, 0)).mean() < 8
    with pytest.raises(UnsupportedType, match="TIFF"):
        decode(body, SETTINGS)


def test_samples_of_32_bits_are_refused_in_words(encoded: Save) -> None:
    with pytest.raises(BadImage, match="32 bits"):
        decode(encoded(Image.new("F", (64, 64), 0.5), "TIFF"), WITH_TIFF)


@pytest.mark.parametrize(
    ("change", "error", "subject"),
    [
        ({"image_bytes_max": 100}, TooLarge, "image_bytes_max"),
        ({"pixels_max": 160 * 120 - 1}, TooLarge, "pixels_max"),
        ({"side_px_max": 159}, TooLarge, "side_px_max"),
        ({"side_px_min": 121}, BadImage, "side_px_min"),
        ({"ancillary_bytes_max": 1}, TooLarge, "ancillary_bytes_max"),
        ({"formats": ("JPEG",)}, UnsupportedType, "PNG"),
    ],
)
def test_each_limit_is_the_first_value_that_refuses(
    change: dict[str, Any], error: type[StemmaError], subject: str, photo: Rgb, encoded: Save
) -> None:
    body = encoded(photo, "PNG", dpi=(72, 72))
    with pytest.raises(error) as caught:
        decode(body, DecodeSettings(**change))
    assert caught.value.subject == subject
    loosened = {
        "pixels_max": 160 * 120,
        "side_px_max": 160,
        "side_px_min": 120,
        "image_bytes_max": len(body),
        "ancillary_bytes_max": 21,
        "formats": ("PNG",),
    }
    name = next(iter(change))
    assert decode(body, DecodeSettings(**{name: loosened[name]})).width == 160  # type: ignore[arg-type]


@given(
    st.binary(max_size=300), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF____WEBP"])
)
@settings(max_examples=120, deadline=None)
def test_bytes_are_decoded_or_refused_and_nothing_else(tail: bytes, head: bytes) -> None:
    with pytest.raises((BadImage, UnsupportedType, TooLarge)):
        decode(head + tail, SETTINGS)


@given(st.sampled_from(PAIRS), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_changed_bytes_are_decoded_or_refused_and_nothing_else(
    pair: tuple[str, str], changes: list[tuple[float, int]]
) -> None:
    if pair[0] == "TIFF":
        return  # libtiff writes to standard error whatever it thinks
    out = io.BytesIO()
    _picture(pair[1], 40, 36, 1).save(out, pair[0])
    body = bytearray(out.getvalue())
    for share, value in changes:
        # Squared: headers are where a byte matters.
        body[int(share**2 * (len(body) - 1))] = value
    with contextlib.suppress(BadImage, UnsupportedType, TooLarge):
        assert decode(bytes(body), SETTINGS).rgb_HWC.size


def test_a_working_copy_is_read_back_nearly_unchanged_and_its_damage_is_noticed(photo: Rgb, encoded: Save) -> None:
    pixels = decode(encoded(photo, "PNG"), SETTINGS)
    body = working_copy(pixels)
    with Image.open(io.BytesIO(body)) as stored:
        assert stored.format == "JPEG"
        assert stored.layer[0][1:3] == stored.layer[1][1:3] == (1, 1), "no chroma subsampling"  # type: ignore[attr-defined]
    back = read_working_copy(body)
    assert back.shape == photo.shape
    assert np.abs(back.astype(int) - photo).mean() < 2.5
    assert working_copy(decode(encoded(photo, "PNG"), SETTINGS)) == body
    for damaged in (body[:-300], b"", b"GIF89a" + body):
        with pytest.raises(Corrupt):
            read_working_copy(damaged)


def test_an_old_pillow_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    raster.require_pillow()
    monkeypatch.setattr(raster, "pillow_version", "12.9.1")
    with pytest.raises(Unavailable, match=r"install 13\.0\.0"):
        raster.require_pillow()


def test_a_child_loads_nothing_heavy() -> None:
    # torch or pydantic in a child would cost seconds at every start and break its memory limit.
    script = "import sys, stemma.vision.child; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True, env={})
    loaded = set(done.stdout.split())
    assert {"PIL", "numpy", "stemma"} <= loaded
    assert not loaded & {"torch", "pydantic", "cv2", "faiss", "lance", "ray", "fastapi", "asyncio", "socket", "ssl"}
