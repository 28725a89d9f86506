"""The outside of a picture file, read by us before any decoder sees it, and cut down to what a decoder must see.

``read_header`` walks chunks and segments with plain slicing: it finds the size, the frames, the orientation and how
many bytes are ancillary (EXIF, ICC, XMP, text, unknown), and builds ``bare``: the same picture without them and
without frames after the first. Nothing ancillary is ever inflated or parsed, but for the orientation, one 16-bit entry
of the first EXIF directory. So loops and bombs in metadata (CVE-2026-96643 and its like) have no parser to meet.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from stemma.errors import BadImage

TIFF_TAGS_MAX = 512
ORIENTATION_TAG = 0x0112


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the file says of itself. ``width`` and ``height`` are before rotation."""

    width: int
    height: int
    orientation: int
    """EXIF, 1 to 8; whatever else was written counts as 1."""
    ancillary_bytes: int
    frames: int
    """0 when there is more than one but they are not counted."""
    bare: bytes
    """A file of the same format with the same first frame and nothing else."""


def read_header(body: bytes, format: str) -> Header:
    """The header of a body that begins as ``format``. Raises BadImage when the structure is broken or cut off."""
    try:
        return _READERS[format](body)
    except (struct.error, IndexError) as error:
        raise _cut(format) from error


def _cut(format: str) -> BadImage:
    return BadImage(f"the {format} file is cut off; send the whole file", subject=format)


def _broken(format: str, why: str) -> BadImage:
    return BadImage(f"the {format} file is broken: {why}", subject=format)


def exif_orientation(exif: bytes) -> int:
    """Entry 0x0112 of the first directory of a TIFF-shaped EXIF block, 1 to 8; 1 when absent, odd or out of range."""
    if exif[:6] == b"Exif\x00\x00":
        exif = exif[6:]
    order = {b"II*\x00": "<", b"MM\x00*": ">"}.get(exif[:4])
    if order is None or len(exif) < 8:
        return 1
    (start,) = struct.unpack_from(order + "I", exif, 4)
    if start + 2 > len(exif):
        return 1
    (count,) = struct.unpack_from(order + "H", exif, start)
    for at in range(start + 2, min(start + 2 + 12 * count, len(exif) - 11), 12):
        tag, kind, _, value = struct.unpack_from(order + "HHIH", exif, at)
        if tag == ORIENTATION_TAG:
            return value if kind == 3 and 1 <= value <= 8 else 1
    return 1


# JPEG

_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_KEPT = frozenset((0xC4, 0xDB, 0xDD, 0xCC))
_JPEG_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))


def _jpeg_segments(body: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start of its two bytes, end) up to and with the first SOS, whose end is the end of the body."""
    at = 2
    while True:
        if body[at] != 0xFF:
            raise _broken("JPEG", f"no marker at byte {at}")
        while body[at + 1] == 0xFF:
            at += 1
        marker = body[at + 1]
        if marker in _JPEG_ALONE:
            at += 2
            continue
        if marker in (0x00, 0xD9):
            raise _broken("JPEG", "it ends before its first scan")
        if marker == 0xDA:
            yield marker, at, len(body)
            return
        (length,) = struct.unpack_from(">H", body, at + 2)
        end = at + 2 + length
        if length < 2:
            raise _broken("JPEG", f"a segment of length {length}")
        if end > len(body):
            raise _cut("JPEG")
        yield marker, at, end
        at = end


def _read_jpeg(body: bytes) -> Header:
    kept = [body[:2]]
    size: tuple[int, int] | None = None
    orientation, ancillary = 0, 0
    named: set[bytes] = set()
    for marker, at, end in _jpeg_segments(body):
        content = body[at + 4 : min(end, at + 20)]
        # JFIF and Adobe segments tell the decoder which colours it has: the first of each stays.
        colour = {0xE0: b"JFIF\x00", 0xEE: b"Adobe"}.get(marker)
        if colour is not None and content.startswith(colour) and colour not in named:
            named.add(colour)
            kept.append(body[at:end])
        elif marker in _SOF:
            # Decoder and wrapper may each believe another of two frame headers (the scan wider than its tile).
            if size is not None:
                raise _broken("JPEG", "it has two frame headers")
            height, width = struct.unpack_from(">HH", body, at + 5)
            size = (width, height)
            kept.append(body[at:end])
        elif marker in _JPEG_KEPT or marker == 0xDA:
            kept.append(body[at:end])
        else:
            ancillary += end - at
            if marker == 0xE1 and not orientation and content.startswith(b"Exif\x00\x00"):
                orientation = exif_orientation(body[at + 4 : end])
    if size is None:
        raise _broken("JPEG", "it has no frame header before its scan")
    return Header(
        width=size[0],
        height=size[1],
        orientation=orientation or 1,
        ancillary_bytes=ancillary,
        frames=1,
        bare=b"".join(kept),
    )


# PNG

_PNG_KEPT = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))
_PNG_FRAMES = frozenset((b"acTL", b"fcTL", b"fdAT"))


def _read_png(body: bytes) -> Header:
    width, height = struct.unpack_from(">II", body, 16)
    if body[8:16] != b"\x00\x00\x00\rIHDR":
        raise _broken("PNG", "it does not begin with IHDR")
    kept = [body[:8]]
    at, kind = 8, b""
    orientation, ancillary, frames = 1, 0, 1
    while kind != b"IEND":
        (length,) = struct.unpack_from(">I", body, at)
        kind, end = body[at + 4 : at + 8], at + 12 + length
        if end > len(body):
            raise _cut("PNG")
        if kind == b"IHDR" and at != 8:
            raise _broken("PNG", "it has two headers")
        if kind in _PNG_KEPT:
            kept.append(body[at:end])
        elif kind in _PNG_FRAMES:
            frames = struct.unpack_from(">I", body, at + 8)[0] if kind == b"acTL" else frames
        else:
            ancillary += end - at
            if kind == b"eXIf":
                orientation = exif_orientation(body[at + 8 : end - 4])
        at = end
    return Header(
        width=width,
        height=height,
        orientation=orientation,
        ancillary_bytes=ancillary,
        frames=max(1, frames),
        bare=b"".join(kept),
    )


# WebP


def _riff_chunks(body: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(name, start of the header, end of the content without padding)."""
    (total,) = struct.unpack_from("<I", body, 4)
    if total + 8 > len(body):
        raise _cut("WEBP")
    at = 12
    while at + 8 <= total + 8:
        (length,) = struct.unpack_from("<I", body, at + 4)
        if at + 8 + length > total + 8:
            raise _cut("WEBP")
        yield body[at : at + 4], at, at + 8 + length
        at += 8 + length + (length & 1)


def _stream_size(name: bytes, content: bytes) -> tuple[int, int]:
    """Width and height written in a VP8 or VP8L bit stream."""
    if name == b"VP8L":
        if content[0] != 0x2F:
            raise _broken("WEBP", "its lossless stream has no signature")
        (bits,) = struct.unpack_from("<I", content, 1)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if content[3:6] != b"\x9d\x01\x2a":
        raise _broken("WEBP", "its stream does not begin with a key frame")
    width, height = struct.unpack_from("<HH", content, 6)
    return width & 0x3FFF, height & 0x3FFF


def _extended_head(content: bytes) -> tuple[bytes, tuple[int, int]]:
    """The VP8X chunk with its ICC, EXIF and XMP flags cleared, and the canvas that it declares."""
    width = 1 + int.from_bytes(content[4:7], "little")
    height = 1 + int.from_bytes(content[7:10], "little")
    return struct.pack("<4sIB", b"VP8X", 10, content[0] & ~0x2C) + content[1:10], (width, height)


def _read_webp(body: bytes) -> Header:
    kept: list[bytes] = []
    canvas: tuple[int, int] | None = None
    stream: tuple[int, int] | None = None
    orientation, ancillary, frames = 1, 0, 0
    for name, at, end in _riff_chunks(body):
        content = body[at + 8 : end]
        padded = body[at : end + ((end - at) & 1)]
        if name == b"VP8X" and canvas is None and len(content) >= 10:
            head, canvas = _extended_head(content)
            kept.append(head)
        elif name in (b"VP8 ", b"VP8L") and stream is None:
            stream = _stream_size(name, content)
            kept.append(padded)
        elif name in (b"ALPH", b"ANIM"):
            kept.append(padded)
        elif name == b"ANMF":
            frames += 1
            if frames == 1:
                kept.append(padded)
        else:
            ancillary += end - at
            if name == b"EXIF":
                orientation = exif_orientation(content)
    size = canvas or stream
    if size is None or (stream is None and not frames):
        raise _broken("WEBP", "it holds no picture")
    content = b"".join(kept)
    bare = struct.pack("<4sI4s", b"RIFF", 4 + len(content), b"WEBP") + content
    return Header(
        width=size[0],
        height=size[1],
        orientation=orientation,
        ancillary_bytes=ancillary,
        frames=max(1, frames),
        bare=bare,
    )


# GIF


def _sub_blocks_end(body: bytes, at: int) -> int:
    while body[at]:
        at += body[at] + 1
    if at >= len(body):
        raise _cut("GIF")
    return at + 1


def _table_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _read_gif(body: bytes) -> Header:
    width, height, flags = struct.unpack_from("<HHB", body, 6)
    at = 13 + _table_bytes(flags)
    kept, control = [body[:at]], b""
    ancillary, frames = 0, 0
    while frames < 2 and body[at] != 0x3B:
        if body[at] == 0x21:
            end = _sub_blocks_end(body, at + 2)
            if body[at + 1] == 0xF9:
                control = body[at:end]
            else:
                ancillary += end - at
        elif body[at] == 0x2C:
            frames += 1
            left, top, inner_w, inner_h, flags = struct.unpack_from("<HHHHB", body, at + 1)
            if frames == 1:
                # A first frame that sticks out enlarges the picture, in Pillow as in browsers.
                width, height = max(width, left + inner_w), max(height, top + inner_h)
                end = _sub_blocks_end(body, at + 10 + _table_bytes(flags) + 1)
                kept += [control, body[at:end]]
        else:
            raise _broken("GIF", f"no block at byte {at}")
        at = end
    if not frames:
        raise _broken("GIF", "it holds no picture")
    return Header(
        width=width,
        height=height,
        orientation=1,
        ancillary_bytes=ancillary,
        frames=1 if frames == 1 else 0,
        bare=b"".join([*kept, b";"]),
    )


# TIFF, off by default

_TIFF_KIND_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_TIFF_ANCILLARY = frozenset((270, 285, 305, 306, 315, 316, 33432, 700, 33723, 34377, 34665, 34675, 34853, 37724, 50341))


def _read_tiff(body: bytes) -> Header:
    order = "<" if body[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", body, 4)
    (count,) = struct.unpack_from(order + "H", body, start)
    if count > TIFF_TAGS_MAX:
        raise _broken("TIFF", f"{count} tags in its first directory, more than {TIFF_TAGS_MAX}")
    values: dict[int, int] = {}
    ancillary = 0
    for at in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, number = struct.unpack_from(order + "HHI", body, at)
        if tag in _TIFF_ANCILLARY:
            ancillary += number * _TIFF_KIND_BYTES.get(kind, 1)
        elif number == 1 and kind in (3, 4):
            (values[tag],) = struct.unpack_from(order + ("H" if kind == 3 else "I"), body, at + 8)
    (following,) = struct.unpack_from(order + "I", body, start + 2 + 12 * count)
    width, height = values.get(256, 0), values.get(257, 0)
    if values.get(ORIENTATION_TAG, 1) in (5, 6, 7, 8):
        width, height = height, width
    # Pillow turns a TIFF itself while loading, so its size is given as turned and the orientation as done.
    return Header(
        width=width,
        height=height,
        orientation=1,
        ancillary_bytes=ancillary,
        frames=0 if following else 1,
        bare=body,
    )


_READERS: dict[str, Callable[[bytes], Header]] = {
    "JPEG": _read_jpeg,
    "PNG": _read_png,
    "WEBP": _read_webp,
    "GIF": _read_gif,
    "TIFF": _read_tiff,
}
