"""The hostile pictures of the reliability facts, section 4, made by code: items 1-19 and 22, as far as they are bytes.

``hostile_corpus`` (session) is a list of ``Case``:

    number   the item in the list; 0 for what is not on it
    name     unique
    body     the upload
    expect   "decoded", or the error code that it must be refused with under default settings
    subject  which limit or format the refusal names; None: any
    size     (width, height) after EXIF rotation, None where refused
    rgb_HWC  the pixels it must decode to, None where only the fact of decoding counts
    slack    largest mean difference allowed to rgb_HWC, in 8-bit steps
    note     a fragment of a note that must come with it
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

Rgb = NDArray[np.uint8]
SIDE = 96


class Case(NamedTuple):
    number: int
    name: str
    body: bytes
    expect: str
    subject: str | None = None
    size: tuple[int, int] | None = None
    rgb_HWC: Rgb | None = None
    slack: float = 0.0
    note: str = ""


@pytest.fixture(scope="session")
def good_jpeg() -> bytes:
    """A plain picture that must decode after anything."""
    return _save(_scene(), "JPEG", quality=92, subsampling=0)


@pytest.fixture(scope="session")
def hostile_corpus() -> list[Case]:
    """Every case once; see the module's docstring for the fields."""
    makers = (_bombs, _broken_streams, _frames, _tiffs, _metadata, _orientations, _modes, _impostors, _sizes, _contents)
    cases = [case for make in makers for case in make()]
    assert len({case.name for case in cases}) == len(cases)
    return cases


# Building blocks


def _scene(width: int = SIDE, height: int = SIDE - 20) -> Rgb:
    """Smooth, coloured, the same under no rotation or mirroring."""
    y, x = np.mgrid[:height, :width].astype(float)
    planes = (x / width * 200 + 30, y / height * 180 + 20, 128 + 90 * np.sin(x / 17 + y / 11))
    return np.stack(planes, -1).round().astype(np.uint8)


def _save(rgb: Rgb | Image.Image, format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture = rgb if isinstance(rgb, Image.Image) else Image.fromarray(rgb)
    picture.save(out, format, **options)
    return out.getvalue()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(width: int, height: int, depth: int, colour: int, lines: Iterable[bytes], *extra: bytes) -> bytes:
    """A PNG with its IHDR as said and ``extra`` chunks before the data, whatever the lines hold."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\x00" + line for line in lines), 9)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + b"".join(extra) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _with_png_chunks(body: bytes, *extra: bytes) -> bytes:
    return body[:33] + b"".join(extra) + body[33:]


def _segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def _with_segments(jpeg: bytes, *segments: bytes) -> bytes:
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def _exif(*entries: tuple[int, int, int], following: int = 0) -> bytes:
    """A little-endian EXIF block: (tag, type, value) each, and where the next directory is said to be."""
    fields = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"II*\x00\x08\x00\x00\x00" + struct.pack("<H", len(entries)) + fields + struct.pack("<I", following)


def _decoded(number: int, name: str, body: bytes, rgb: Rgb | None, slack: float = 0.0, note: str = "") -> Case:
    size = None if rgb is None else (rgb.shape[1], rgb.shape[0])
    return Case(number, name, body, "decoded", None, size, rgb, slack, note)


# 1 to 4: sizes that lie, streams that break


def _bombs() -> Iterator[Case]:
    zeros = [bytes(1 << 20)] * 45
    yield Case(1, "png 100,000 square", _png(100_000, 100_000, 1, 0, zeros), "too_large", "side_px_max")
    yield Case(1, "png of 268 Mpx", _png(16_384, 16_384, 1, 0, zeros), "too_large", "pixels_max")
    jpeg = bytearray(_save(_scene(), "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    struct.pack_into(">HH", jpeg, at + 5, 65_500, 65_500)
    yield Case(1, "jpeg that says 65,500 square", bytes(jpeg), "too_large", "side_px_max")
    webp = b"VP8X" + struct.pack("<IB3x", 10, 0) + b"\xff\xff\x7f\xff\xff\x7f" + _save(_scene(), "WEBP")[12:]
    yield Case(1, "webp canvas of 2^46", _riff(webp), "too_large", "side_px_max")
    yield Case(1, "gif screen 65,535 square", b"GIF89a" + b"\xff" * 4 + b"\0\0\0" + _gif_frame() + b";", "too_large")
    yield Case(0, "21 MiB", b"\xff\xd8\xff\xe0" + bytes(21 << 20), "too_large", "image_bytes_max")


def _broken_streams() -> Iterator[Case]:
    jpeg = _save(_scene(256, 200), "JPEG", quality=92)
    at = jpeg.index(b"\xff\xc0")
    end = at + 2 + struct.unpack_from(">H", jpeg, at + 2)[0]
    wide = bytearray(jpeg[at:end])
    struct.pack_into(">HH", wide, 5, 200, 4096)
    yield Case(2, "jpeg with two frame headers", jpeg[:at] + bytes(wide) + jpeg[at:], "bad_image", "JPEG")
    yield Case(2, "jpeg with its second header first", jpeg[:end] + bytes(wide) + jpeg[end:], "bad_image", "JPEG")
    # libjpeg fills what the scan does not reach with grey and Pillow does not say so: any viewer shows the same.
    yield Case(2, "jpeg wider than its scan", jpeg[:at] + bytes(wide) + jpeg[end:], "decoded", size=(4096, 200))
    for kind, body in (("baseline", jpeg), ("progressive", _save(_scene(256, 200), "JPEG", progressive=True))):
        for percent in range(100):
            yield Case(3, f"{kind} jpeg cut at {percent}%", body[: len(body) * percent // 100], "bad_image")
    for format in ("PNG", "WEBP", "GIF"):
        body = _save(_scene(), format)
        for percent in range(10, 100, 10):
            yield Case(3, f"{format} cut at {percent}%", body[: len(body) * percent // 100], "bad_image")
    yield Case(4, "webp with an overfull code", _riff(_vp8l_overfull()), "bad_image", "WEBP")
    noise = np.random.default_rng(4).bytes(4000)
    yield Case(4, "webp of noise", _riff(b"VP8L" + struct.pack("<IBI", 4005, 0x2F, 63 | 63 << 14) + noise), "bad_image")


def _riff(chunks: bytes) -> bytes:
    chunks += b"\0" * (len(chunks) & 1)
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


def _vp8l_overfull() -> bytes:
    """A lossless stream whose first prefix code has 19 code lengths of 1: twice two would be full already."""
    bits = "".join(
        f"{value:0{width}b}"[::-1]
        for value, width in ((63, 14), (63, 14), (1, 1), (0, 3), (0, 1), (0, 1), (0, 1), (0, 1), (15, 4))
    )
    bits += "100" * 19 + "01" * 400
    bits += "0" * (-len(bits) % 8)
    stream = b"\x2f" + bytes(int(bits[at : at + 8][::-1], 2) for at in range(0, len(bits), 8))
    return b"VP8L" + struct.pack("<I", len(stream)) + stream


# 5 to 7: frames and directories


def _gif_frame() -> bytes:
    """One 64 x 64 frame of colour 1, from a real encoder, without screen and trailer."""
    body = _save(Image.new("P", (64, 64), 1), "GIF")
    return body[body.index(b"\x2c") : -1]


def _frames() -> Iterator[Case]:
    first = Image.new("P", (64, 64), 1)
    first.putpalette([10, 20, 30, 200, 100, 50])
    body = _save(first, "GIF")
    frame = body[body.index(b"\x2c") : -1]
    rgb = np.asarray(first.convert("RGB"))
    yield _decoded(5, "gif of 10,000 frames", body[:-1] + frame * 9_999 + b";", rgb, note="first of several frames")
    still = _save(_scene(), "PNG")
    control = _chunk(b"acTL", struct.pack(">II", 2, 0))
    huge = _chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 100_000, 100_000, 0, 0, 1, 10, 0, 0))
    data = _chunk(b"fdAT", struct.pack(">I", 1) + zlib.compress(bytes(1 << 24)))
    apng = _with_png_chunks(still, control)[:-12] + huge + data + still[-12:]
    yield _decoded(6, "apng whose second frame is huge", apng, _scene(), note="first of 2 frames")
    tiny = _save(_scene(1, 1), "PNG")
    apng = _with_png_chunks(tiny, control)[:-12] + huge + data + tiny[-12:]
    yield Case(6, "apng of 1 x 1, then huge", apng, "bad_image", "side_px_min")
    frames = [Image.fromarray(_scene()), Image.fromarray(255 - _scene())]
    moving = _save(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    yield _decoded(6, "webp of two frames", moving, _scene(), note="first of 2 frames")


def _tiffs() -> Iterator[Case]:
    yield Case(7, "tiff with a cyclic directory", _exif((256, 3, 64), (257, 3, 64), following=8), "unsupported_type")
    many = b"II*\0\x08\0\0\0\xff\xff" + struct.pack("<HHII", 256, 3, 1, 64) * 65_535
    yield Case(7, "tiff of 65,535 tags", many + bytes(4), "unsupported_type", "TIFF")
    lab = _save(Image.merge("LAB", [Image.new("L", (64, 64), 120)] * 3), "TIFF")
    yield Case(13, "LAB in a tiff", lab, "unsupported_type", "TIFF")


# 8 to 12: what stands beside the pixels


def _metadata() -> Iterator[Case]:
    scene = _scene()
    jpeg, png = _save(scene, "JPEG", quality=95, subsampling=0), _save(scene, "PNG")
    loop = _exif((0x0112, 3, 6), (0x8769, 4, 8), (0x8825, 4, 8), (0xA005, 4, 8), following=8)
    looped = _with_segments(jpeg, _segment(0xE1, b"Exif\0\0" + loop))
    turned = np.ascontiguousarray(np.rot90(scene, -1))
    yield _decoded(8, "exif that points to itself", looped, turned, slack=2)
    off = b"II*\x00" + struct.pack("<I", 0xFFFFFFF0)
    yield _decoded(
        8, "exif that points outside", _with_segments(jpeg, _segment(0xE1, b"Exif\0\0" + off)), scene, slack=2
    )
    profile = np.random.default_rng(9).bytes(15_000_000)
    parts = [profile[at : at + 65_000] for at in range(0, len(profile), 65_000)]
    many = [_segment(0xE2, b"ICC_PROFILE\0" + bytes((n & 255, 255)) + part) for n, part in enumerate(parts)]
    yield Case(9, "jpeg with 15 MB of ICC", _with_segments(jpeg, *many), "too_large", "ancillary_bytes_max")
    chunk = _chunk(b"iCCP", b"x\0\0" + profile)
    yield Case(9, "png with 15 MB of ICC", _with_png_chunks(png, chunk), "too_large", "ancillary_bytes_max")
    garbage = _with_png_chunks(png, _chunk(b"iCCP", b"x\0\0" + zlib.compress(profile[:9000])))
    yield _decoded(9, "png with garbage for ICC", garbage, scene)
    garbage = _with_segments(jpeg, _segment(0xE2, b"ICC_PROFILE\0\x01\x01" + profile[:9000]))
    yield _decoded(9, "jpeg with garbage for ICC", garbage, scene, slack=2)
    bomb = _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(10 << 20), 9))
    yield _decoded(10, "png with 60 text bombs, 600 MiB inflated", _with_png_chunks(png, *[bomb] * 60), scene)
    yield Case(10, "png with 150 text bombs", _with_png_chunks(png, *[bomb] * 150), "too_large", "ancillary_bytes_max")
    laughs = b"".join(b'<!ENTITY l%d "%s">' % (n, b"&l%d;" % (n - 1) * 10) for n in range(1, 12))
    xmp = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY l0 "ha">' + laughs + b"]><x:xmpmeta>&l11;</x:xmpmeta>"
    packet = _segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp)
    yield _decoded(11, "jpeg with entities in its XMP", _with_segments(jpeg, packet), scene, slack=2)
    packet = _chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    yield _decoded(11, "png with entities in its XMP", _with_png_chunks(png, packet), scene)


def _turn(rgb: Rgb, orientation: int) -> Rgb:
    """The picture that a viewer shows, straight from the EXIF table: where row 0 and column 0 are."""
    if orientation >= 5:
        rgb = rgb.swapaxes(0, 1)
    up = {3, 4, 7, 8}
    left = {2, 3, 6, 7}
    rgb = rgb[::-1] if orientation in up else rgb
    return np.ascontiguousarray(rgb[:, ::-1] if orientation in left else rgb)


def _orientations() -> Iterator[Case]:
    scene = _scene()
    jpeg, png = _save(scene, "JPEG", quality=95, subsampling=0), _save(scene, "PNG")
    for value in (0, *range(1, 10), 255):
        shown = _turn(scene, value) if 1 <= value <= 8 else scene
        exif = _exif((0x0112, 3, value))
        turned = _with_segments(jpeg, _segment(0xE1, b"Exif\0\0" + exif))
        yield _decoded(12, f"jpeg of orientation {value}", turned, shown, slack=2)
        yield _decoded(12, f"png of orientation {value}", _with_png_chunks(png, _chunk(b"eXIf", exif)), shown)
        yield _decoded(12, f"webp of orientation {value}", _save(scene, "WEBP", lossless=True, exif=exif), shown)


# 13: every kind of sample


def _modes() -> Iterator[Case]:
    scene = _scene()
    height, width, _ = scene.shape
    picture = Image.fromarray(scene)
    ink = picture.convert("CMYK")
    inked = np.asarray(ink.convert("RGB"))
    yield _decoded(13, "CMYK jpeg", _save(ink, "JPEG", quality=95, subsampling=0), inked, slack=2)
    yield _decoded(13, "YCCK jpeg", _ycck(ink), inked, slack=3)
    grey = np.linspace(0, 65_535, width * height).astype(np.uint16).reshape(height, width)
    rgb = np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, -1)
    yield _decoded(
        13, "16-bit grey png", _png(width, height, 16, 0, (line.astype(">u2").tobytes() for line in grey)), rgb
    )
    # A low byte unlike the high one, or a reader of the wrong byte would go unnoticed.
    deep = (scene.astype(np.uint16) * 256 + 77).astype(">u2")
    yield _decoded(13, "16-bit png", _png(width, height, 16, 2, (line.tobytes() for line in deep)), scene)
    keyed = _chunk(b"tRNS", deep[0, 0].tobytes())
    white = scene.copy()
    white[(scene == scene[0, 0]).all(-1)] = 255
    body = _png(width, height, 16, 2, (line.tobytes() for line in deep), keyed)
    yield _decoded(13, "16-bit png with a clear colour", body, white, note="on white")
    keyed = _chunk(b"tRNS", struct.pack(">H", int(grey[0, 0])))
    body = _png(width, height, 16, 0, (line.astype(">u2").tobytes() for line in grey), keyed)
    clear = rgb.copy()
    clear[grey == grey[0, 0]] = 255
    yield _decoded(13, "16-bit grey png with a clear grey", body, clear, slack=0.1, note="on white")
    alpha = np.linspace(0, 255, width * height).astype(np.uint8).reshape(height, width)
    share = alpha[..., None] / 255
    faded = (scene * share + 255 * (1 - share)).round().astype(np.uint8)
    yield _decoded(13, "rgba png", _save(np.dstack([scene, alpha]), "PNG"), faded, slack=0.6, note="on white")
    both = np.dstack([scene[..., 0], alpha])
    greyed = (scene[..., :1] * share + 255 * (1 - share)).round().astype(np.uint8).repeat(3, -1)
    yield _decoded(13, "grey and alpha png", _save(Image.fromarray(both), "PNG"), greyed, slack=0.6, note="on white")
    body = _save(np.dstack([scene, alpha]), "WEBP", lossless=True, exact=True)
    yield _decoded(13, "rgba webp", body, faded, slack=0.6, note="on white")
    few = picture.quantize(16)
    body = _save(few, "PNG", transparency=bytes(range(0, 256, 16)))
    yield _decoded(13, "palette and alpha png", body, _palette_on_white(few), slack=0.6, note="on white")
    yield _decoded(13, "palette png", _save(few, "PNG"), np.asarray(few.convert("RGB")))
    bits = picture.convert("1")
    yield _decoded(13, "1-bit png", _save(bits, "PNG"), np.asarray(bits.convert("RGB")))
    yield _decoded(
        13,
        "grey jpeg",
        _save(picture.convert("L"), "JPEG", quality=95),
        np.asarray(picture.convert("L").convert("RGB")),
        slack=2,
    )


def _ycck(ink: Image.Image) -> bytes:
    """Pillow writes CMYK alone; with Y, Cb, Cr in its bands and the Adobe transform set to 2 the file is a YCCK one."""
    stored = 255 - np.asarray(ink)
    luma = np.asarray(Image.fromarray(255 - stored[..., :3]).convert("YCbCr"))
    planes = np.dstack([255 - luma, 255 - stored[..., 3:]])
    body = bytearray(_save(Image.fromarray(np.ascontiguousarray(planes), "CMYK"), "JPEG", quality=95, subsampling=0))
    body[body.index(b"Adobe") + 11] = 2
    return bytes(body)


def _palette_on_white(few: Image.Image) -> Rgb:
    index = np.asarray(few)
    colours = np.asarray(few.getpalette()).reshape(-1, 3)[index]
    share = (index * 16 / 255)[..., None]
    return (colours * share + 255 * (1 - share)).round().astype(np.uint8)


# 14 to 19 and 22


def _impostors() -> Iterator[Case]:
    scene = _scene()
    jpeg = _save(scene, "JPEG", quality=95, subsampling=0)
    page = _segment(0xFE, b"<html><script>alert(1)</script></html>")
    archive = b"PK\x03\x04" + bytes(26) + b"PK\x05\x06" + bytes(18)
    yield _decoded(14, "jpeg, page and archive in one", _with_segments(jpeg, page) + archive, scene, slack=2)
    heic = b"\0\0\0\x18ftypheic" + bytes(64)
    avif = b"\0\0\0\x18ftypavif" + bytes(64)
    svg = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="64"/>'
    pdf = b"%PDF-1.4\n" + jpeg
    shams = (
        (15, "SVG", svg),
        (15, "EPS", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n"),
        (16, "PDF", pdf),
        (0, "HEIC", heic),
        (0, "AVIF", avif),
        (0, "BMP", _save(scene, "BMP")),
        (0, "ZIP", archive),
        (0, "HTML", b"<!DOCTYPE html><p>hello"),
        (0, "unknown", np.random.default_rng(0).bytes(500)),
    )
    for number, name, body in shams:
        yield Case(number, f"{name} named .jpg", body, "unsupported_type", name)
    yield Case(16, "pdf behind a jpeg's first bytes", b"\xff\xd8\xff\xe0\x00\x10JFIF\0" + pdf[:9] + pdf, "bad_image")
    yield Case(16, "pdf behind a png's first bytes", b"\x89PNG\r\n\x1a\n" + pdf, "bad_image", "PNG")
    yield Case(0, "nothing", b"", "bad_image")


def _sizes() -> Iterator[Case]:
    for width, height in ((1, 1), (1, 10_000), (31, 31)):
        body = _save(_scene(width, height), "PNG")
        yield Case(17, f"{width} x {height}", body, "bad_image", "side_px_min")
    yield _decoded(17, "32 x 32", _save(_scene(32, 32), "PNG"), _scene(32, 32))
    long = _save(_scene(32, 16_384), "PNG")
    yield Case(17, "32 x 16,384", long, "decoded", size=(32, 16_384))
    yield Case(17, "32 x 16,385", _save(_scene(32, 16_385), "PNG"), "too_large", "side_px_max")


def _contents() -> Iterator[Case]:
    noise = np.random.default_rng(18).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    board = (np.indices((SIDE, SIDE)).sum(0) % 2 * 255).astype(np.uint8)
    white = np.full((SIDE, SIDE, 3), 255, np.uint8)
    contents = {"white": white, "noise": noise, "checkerboard": np.dstack([board] * 3)}
    for name, rgb in contents.items():
        yield _decoded(18, f"all {name}", _save(rgb, "PNG"), rgb)
    scene = _scene()
    relatives = {"flipped": scene[:, ::-1], "rotated": np.rot90(scene), "inverted": 255 - scene}
    for name, rgb in relatives.items():
        yield _decoded(19, f"scene {name}", _save(np.ascontiguousarray(rgb), "PNG"), rgb)
    yield _decoded(22, "zero variance", _save(white // 2, "PNG"), white // 2)
