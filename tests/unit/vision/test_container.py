"""The reader of file headers: sizes, frames, orientation and ancillary bytes, and the bare file it leaves."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from stemma.errors import BadImage, UnsupportedType
from stemma.vision.container import exif_orientation, read_header
from stemma.vision.sniff import accepted_format, looks_like

Rgb = NDArray[np.uint8]
Save = Callable[..., bytes]
FORMATS = ("JPEG", "PNG", "WEBP", "GIF")


def _exif(order: str, *entries: tuple[int, int, int]) -> bytes:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    fields = b"".join(struct.pack(order + "HHIHxx", tag, kind, 1, value) for tag, kind, value in entries)
    return mark + struct.pack(order + "IH", 8, len(entries)) + fields + bytes(4)


@pytest.mark.parametrize("format", FORMATS)
def test_sizes_and_bare_pixels_are_those_of_the_whole_file(format: str, photo: Rgb, encoded: Save) -> None:
    body = encoded(photo, format)
    header = read_header(body, format)
    assert (header.width, header.height) == (photo.shape[1], photo.shape[0])
    assert (header.orientation, header.frames) == (1, 1)
    with Image.open(io.BytesIO(header.bare)) as bare, Image.open(io.BytesIO(body)) as whole:
        assert np.array_equal(np.asarray(bare.convert("RGB")), np.asarray(whole.convert("RGB")))


def test_text_profiles_and_exif_are_counted_and_left_out(photo: Rgb, encoded: Save) -> None:
    secret = b"rosebud" * 30
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", secret.decode(), zip=False)
    exif = Image.Exif()
    exif[0x010E] = secret.decode()
    bodies = {
        "PNG": encoded(photo, "PNG", pnginfo=info, exif=exif, icc_profile=secret),
        "JPEG": encoded(photo, "JPEG", exif=exif, icc_profile=secret, comment=secret, xmp=secret),
        "WEBP": encoded(photo, "WEBP", exif=exif, icc_profile=secret, xmp=secret),
        "GIF": encoded(photo, "GIF", comment=secret),
    }
    for format, body in bodies.items():
        header, plain = read_header(body, format), read_header(encoded(photo, format), format)
        assert secret in body or format == "PNG"
        assert secret not in header.bare
        # WebP keeps its VP8X chunk, JPEG has lost its JFIF segment, GIF is called 89a for having had a comment.
        if format == "PNG":
            assert header.bare == plain.bare
        assert abs(len(header.bare) - len(plain.bare)) <= 18
        assert header.ancillary_bytes >= len(secret)


@pytest.mark.parametrize("order", ["<", ">"])
@given(value=st.integers(0, 65_535))
@settings(deadline=None)
def test_orientation_is_1_to_8_or_else_1(order: str, value: int) -> None:
    want = value if 1 <= value <= 8 else 1
    entries = ((0x010F, 2, 1), (0x0112, 3, value), (0x8769, 4, 8))
    assert exif_orientation(_exif(order, *entries)) == want
    assert exif_orientation(b"Exif\0\0" + _exif(order, *entries)) == want
    assert exif_orientation(_exif(order, (0x0112, 4, value))) == 1, "another type is not believed"


@given(st.binary(max_size=80))
@settings(deadline=None)
def test_no_exif_block_breaks_the_reader(junk: bytes) -> None:
    assert exif_orientation(junk) in range(1, 9)
    assert exif_orientation(b"II*\0" + junk) in range(1, 9)
    assert exif_orientation(b"MM\0*\0\0\0\x08" + junk) in range(1, 9)


@pytest.mark.parametrize("format", FORMATS)
@given(where=st.floats(0, 1), junk=st.binary(max_size=12))
@settings(deadline=None)
def test_no_body_breaks_the_reader(format: str, where: float, junk: bytes) -> None:
    body = _small(format)
    at = 12 + int(where * (len(body) - 12))
    for broken in (body[:at], body[:at] + junk, body[:at] + junk + body[at:]):
        with contextlib.suppress(BadImage):
            assert 1 <= read_header(broken, format).orientation <= 8


def _small(format: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (33, 35), (200, 30, 90)).save(out, format)
    return out.getvalue()


def test_frames_after_the_first_never_reach_the_decoder(photo: Rgb) -> None:
    small = photo[:60, :80]
    pictures = [Image.fromarray(small), Image.fromarray(255 - small), Image.fromarray(small[::-1])]
    for format, frames in (("GIF", 0), ("PNG", 3), ("WEBP", 3)):
        out = io.BytesIO()
        options = {"lossless": True} if format == "WEBP" else {}
        pictures[0].save(out, format, save_all=True, append_images=pictures[1:], **options)
        header = read_header(out.getvalue(), format)
        assert header.frames == frames
        with Image.open(io.BytesIO(header.bare)) as bare, Image.open(io.BytesIO(out.getvalue())) as whole:
            assert getattr(bare, "n_frames", 1) == 1
            assert np.array_equal(np.asarray(bare.convert("RGB")), np.asarray(whole.convert("RGB")))


def test_a_frame_that_sticks_out_counts_into_the_size() -> None:
    body = bytearray(_small("GIF"))
    at = body.index(b"\x2c")
    struct.pack_into("<HH", body, at + 1, 5, 7)
    header = read_header(bytes(body), "GIF")
    assert (header.width, header.height) == (33 + 5, 35 + 7)


def test_a_second_header_is_refused() -> None:
    png = _small("PNG")
    huge = b"IHDR" + struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + huge + struct.pack(">I", zlib.crc32(huge))
    with pytest.raises(BadImage, match="two headers"):
        read_header(png[:33] + chunk + png[33:], "PNG")
    jpeg = _small("JPEG")
    at = jpeg.index(b"\xff\xc0")
    with pytest.raises(BadImage, match="two frame headers"):
        read_header(jpeg[:at] + jpeg[at : at + 19] + jpeg[at:], "JPEG")


def test_tiff_directories_are_bounded(encoded: Save) -> None:
    photo = np.zeros((40, 50, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    header = read_header(encoded(photo, "TIFF", exif=exif, description="x" * 900), "TIFF")
    assert (header.width, header.height, header.frames) == (40, 50, 1)
    assert header.ancillary_bytes >= 900
    many = b"II*\0\x08\0\0\0" + struct.pack("<H", 600) + bytes(12 * 600 + 4)
    with pytest.raises(BadImage, match="600 tags"):
        read_header(many, "TIFF")


def test_formats_are_told_by_their_first_bytes() -> None:
    for format in FORMATS:
        assert looks_like(_small(format)) == format
        assert accepted_format(_small(format), FORMATS) == format
    names = {
        "AVIF": b"\0\0\0\x1cftypavif",
        "a video (MP4)": b"\0\0\0\x1cftypisom",
        "SVG": b"\xef\xbb\xbf<!-- hi --><svg xmlns='x'>",
        "HTML": b"  <!DOCTYPE HTML>",
        "XML": b"<?xml version='1.0'?><a/>",
        "PDF": b"junk before %PDF-1.7",
        "EPS": b"%!PS-Adobe",
        "BigTIFF": b"II+\0",
        "a RIFF file": b"RIFF1234WAVE",
        "a netpbm picture": b"P6 8 8 255\n",
        "JPEG XL": b"\xff\x0a",
        "ICO": b"\0\0\x01\0",
    }
    for name, body in names.items():
        assert looks_like(body) == name
        with pytest.raises(UnsupportedType, match="convert it to one of JPEG") as caught:
            accepted_format(body, FORMATS)
        assert caught.value.subject == name
    assert looks_like(b"hello, this is no picture") is None


def test_what_stands_further_in_is_not_looked_at() -> None:
    assert looks_like(b"x" * 5000 + b"<svg >") is None
