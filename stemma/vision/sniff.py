"""What a body is, by its first bytes alone: names and declared types are never believed."""

from __future__ import annotations

import re
from collections.abc import Sequence

from stemma.errors import BadImage, UnsupportedType

SNIFF_BYTES = 4096
"""How far in front text formats are looked for."""

_TIFF = (b"II*\x00", b"MM\x00*")
_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    *((magic, "TIFF") for magic in _TIFF),
    (b"II+\x00", "BigTIFF"),
    (b"MM\x00+", "BigTIFF"),
    (b"BM", "BMP"),
    (b"%!PS", "EPS"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"%PDF", "PDF"),
    (b"PK\x03\x04", "ZIP"),
    (b"PK\x05\x06", "ZIP"),
    (b"\x1f\x8b", "gzip"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"Rar!\x1a\x07", "RAR"),
    (b"8BPS", "Photoshop"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x01\x00", "ICO"),
    (b"\x00\x00\x02\x00", "CUR"),
    (b"icns", "ICNS"),
    (b"DDS ", "DDS"),
    (b"v/1\x01", "OpenEXR"),
    (b"SIMPLE  =", "FITS"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "FlashPix or an old Office file"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
)
_BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"hevc": "HEIC", b"mif1": "HEIC", b"msf1": "HEIC", b"avif": "AVIF"}
_BRANDS |= {b"avis": "AVIF"}
_TEXTS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"<svg[\s>:]", re.I), "SVG"),
    (re.compile(rb"<!doctype html|<html[\s>]", re.I), "HTML"),
    (re.compile(rb"%PDF-"), "PDF"),
    (re.compile(rb"^\s*<\?xml", re.I), "XML"),
    (re.compile(rb"^P[1-7]\s"), "a netpbm picture"),
)


def looks_like(body: bytes) -> str | None:
    """The format that a body appears to be, ``None`` when nothing known fits."""
    for magic, name in _STARTS:
        if body.startswith(magic):
            return name
    if body[:4] == b"RIFF":
        return "WEBP" if body[8:12] == b"WEBP" else "a RIFF file"
    if body[4:8] == b"ftyp":
        return _BRANDS.get(body[8:12], "a video (MP4)")
    front = body[:SNIFF_BYTES]
    return next((name for pattern, name in _TEXTS if pattern.search(front)), None)


def accepted_format(body: bytes, formats: Sequence[str]) -> str:
    """The one of ``formats`` that ``body`` begins as. Raises UnsupportedType naming what it looks like, or BadImage."""
    if not body:
        raise BadImage("the body is empty; send the bytes of one picture", subject="body")
    name = looks_like(body)
    if name is not None and name in formats:
        return name
    what = f"this looks like {name}" if name else "this is no picture format that is known here"
    raise UnsupportedType(f"{what}; convert it to one of {', '.join(formats)}", subject=name or "unknown")
