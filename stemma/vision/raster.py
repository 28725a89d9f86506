"""From a hostile body to pixels at working size, in this process. Runs in a decoding child, and in tests beside it.

Imports stay at Pillow and numpy: a child is up in 0.2 s with 110 MB of address space (torch alone would take 2 s and
pass the child's memory limit). Decoders are Pillow's plugin classes called by name, so that its 40 other parsers are
out of reach whatever a body pretends to be.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL import __version__ as pillow_version
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from stemma.errors import BadImage, TooLarge, Unavailable
from stemma.vision.container import Header, read_header
from stemma.vision.sniff import accepted_format

PILLOW_MIN = (13, 0, 0)
"""Below it a plain JPEG overflows the heap (CVE-2026-112403) and a mode change uses stale storage (CVE-2026-96639)."""

DRAFT_OVERSAMPLING = 2
"""A JPEG is decoded at a reduced DCT scale only down to this many times the working size, and resized from there."""

REDUCING_GAP = 3.0
"""Box reduction before Lanczos, at this distance from the wanted size; Pillow calls 3 indistinguishable from none."""

_DECODERS: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "GIF": GifImageFile,
    "TIFF": TiffImageFile,
}
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    Warning,
    Image.DecompressionBombError,
)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The part of ``DecodeSettings`` that a child needs; plain, because a child does not load pydantic."""

    formats: tuple[str, ...]
    image_bytes_max: int
    pixels_max: int
    side_px_max: int
    side_px_min: int
    ancillary_bytes_max: int
    working_side_px: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Raster:
    """A decoded picture, before it is given its digest."""

    rgb_HWC: NDArray[np.uint8]
    width: int
    height: int
    format: str
    notes: tuple[str, ...]


def require_pillow() -> None:
    """Raises Unavailable when the installed Pillow has known holes in the decoders used here."""
    numbers = tuple(int(part) for part in pillow_version.split(".")[:3] if part.isdigit())
    if numbers < PILLOW_MIN:
        floor = ".".join(map(str, PILLOW_MIN))
        raise Unavailable(f"Pillow {pillow_version} is not safe to decode uploads; install {floor} or later")


def check_body(body: bytes, limits: Limits) -> str:
    """The format of a body of allowed size. Raises TooLarge, UnsupportedType, BadImage."""
    if len(body) > limits.image_bytes_max:
        raise TooLarge(
            f"the picture has {len(body)} bytes, more than {limits.image_bytes_max}; send a smaller file",
            subject="image_bytes_max",
        )
    return accepted_format(body, limits.formats)


def raster(body: bytes, limits: Limits) -> Raster:
    """Decode ``body`` within ``limits``. Raises TooLarge, UnsupportedType, BadImage."""
    format = check_body(body, limits)
    header = read_header(body, format)
    _check_header(header, limits)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            picture, seen_through = _decode(header, format, limits)
    except MemoryError as error:
        raise BadImage("decoding it needs more memory than a picture may use", subject="memory_bytes_max") from error
    except _DECODER_ERRORS as error:
        raise BadImage(f"it cannot be decoded as {format}: {error}"[:300], subject=format) from error
    turned = header.orientation >= 5
    return Raster(
        rgb_HWC=np.array(picture, np.uint8),
        width=header.height if turned else header.width,
        height=header.width if turned else header.height,
        format=format,
        notes=_notes(header, seen_through),
    )


def _notes(header: Header, seen_through: bool) -> tuple[str, ...]:
    notes = []
    if header.frames != 1:
        many = f"{header.frames} frames" if header.frames else "several frames"
        notes.append(f"only the first of {many} was used")
    if seen_through:
        notes.append("transparent parts are shown on white")
    return tuple(notes)


def _check_header(header: Header, limits: Limits) -> None:
    size = f"{header.width} x {header.height}"
    if header.width < 1 or header.height < 1:
        raise BadImage(f"it declares a size of {size} pixels", subject="size")
    if max(header.width, header.height) > limits.side_px_max:
        raise TooLarge(f"{size} pixels: a side is over {limits.side_px_max}; scale it down", subject="side_px_max")
    if header.width * header.height > limits.pixels_max:
        raise TooLarge(f"{size} pixels: more than {limits.pixels_max}; scale it down", subject="pixels_max")
    if min(header.width, header.height) < limits.side_px_min:
        raise BadImage(
            f"{size} pixels: a side is under {limits.side_px_min}, too small to recognise anything",
            subject="side_px_min",
        )
    if header.ancillary_bytes > limits.ancillary_bytes_max:
        raise TooLarge(
            f"{header.ancillary_bytes} bytes of EXIF, ICC, XMP and text, more than {limits.ancillary_bytes_max};"
            " strip its metadata",
            subject="ancillary_bytes_max",
        )


def _decode(header: Header, format: str, limits: Limits) -> tuple[Image.Image, bool]:
    """The picture as RGB at working size, turned; and whether any of it was transparent."""
    source = _DECODERS[format](io.BytesIO(header.bare))
    if source.size != (header.width, header.height):
        raise BadImage(f"its header says {header.width} x {header.height}, its data {source.size}", subject=format)
    longer, goal = max(source.size), limits.working_side_px
    drafted = None
    if format == "JPEG" and longer > DRAFT_OVERSAMPLING * goal:
        share = DRAFT_OVERSAMPLING * goal / longer
        # The scale is 1/2, 1/4 or 1/8, so the draft is at least this large.
        drafted = source.draft(source.mode, (max(1, int(source.width * share)), max(1, int(source.height * share))))
    source.load()
    picture = _eight_bits(source)
    if longer > goal:
        wide, high = (max(1, round(side * goal / longer)) for side in (header.width, header.height))
        # A draft has its last column and row rounded up; the box says where the picture really ends in it.
        box = (0.0, 0.0, *picture.size) if drafted is None else drafted[1]
        picture = picture.resize((wide, high), Image.Resampling.LANCZOS, box, REDUCING_GAP)
    opaque, seen_through = _on_white(picture)
    turn = _TURNS.get(header.orientation)
    return (opaque if turn is None else opaque.transpose(turn)), seen_through


def _eight_bits(source: Image.Image) -> Image.Image:
    """RGB, or RGBA where anything may be transparent, 8 bits each. 16-bit samples keep their upper byte."""
    key = source.info.get("transparency")
    if source.mode.startswith("I;16"):
        # convert() clips at 255 instead of scaling, which would turn nearly everything white.
        deep = np.asarray(source)
        grey = Image.fromarray((deep >> 8).astype(np.uint8))
        if not isinstance(key, int):
            return grey.convert("RGB")
        return Image.merge("LA", (grey, Image.fromarray(np.where(deep == key, 0, 255).astype(np.uint8)))).convert(
            "RGBA"
        )
    if source.mode in ("I", "F"):
        raise BadImage("samples of 32 bits have no agreed range; save it with 8 or 16", subject=source.mode)
    if source.has_transparency_data:
        if isinstance(key, tuple) and max(key) > 255:
            # The clear colour of a 16-bit file, as the 8-bit colour that its pixels were read as.
            source.info["transparency"] = tuple(part >> 8 for part in key)
        return source.convert("RGBA")
    return source if source.mode == "RGB" else source.convert("RGB")


def _on_white(picture: Image.Image) -> tuple[Image.Image, bool]:
    if picture.mode != "RGBA":
        return picture, False
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    low, _ = picture.getchannel("A").getextrema()
    assert isinstance(low, int | float)
    return Image.alpha_composite(white, picture).convert("RGB"), low < 255
