"""The bricks of the page: escaped text, and pictures as data URIs.

``text`` is the only way from outside into ``Html``: file names, metadata and notes are hostile. H, W
pixels, C channels.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable
from typing import NewType

import cv2
import numpy as np

from stemma.api import Candidate, Donor
from stemma.flow import Bytes3

Html = NewType("Html", str)
"""Text that may stand in the page as it is."""

JPEG_QUALITY = 82


def text(value: object) -> Html:
    """Any value as escaped text, quotes and control characters included: file names are hostile."""
    plain = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))
    return Html(html.escape(plain, quote=True))


def called(original: Candidate | Donor) -> str:
    """The original's name if it has one, else its id."""
    return str(original.metadata.get("name") or original.image_id)


def join(parts: Iterable[str]) -> Html:
    """Pieces of the page, one after another."""
    return Html("".join(parts))


def percent(share: float) -> str:
    """A share of 1 as a person writes it: never a certainty that was only rounded up, nor a nothing rounded down."""
    if 0 < share < 0.01:
        return "< 1%"
    return "> 99%" if 0.99 < share < 1 else f"{100 * share:.0f}%"


def jpeg_uri(rgb_HWC: Bytes3) -> str:
    """A picture uint8 [H, W, 3] as a JPEG data URI of its own size."""
    return _uri("jpeg", rgb_HWC[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])


def png_uri(rgba_HWC: Bytes3) -> str:
    """A picture with alpha uint8 [H, W, 4] as a PNG data URI; for small ones, since PNG does not lose."""
    return _uri("png", rgba_HWC[..., [2, 1, 0, 3]], [cv2.IMWRITE_PNG_COMPRESSION, 9])


def _uri(kind: str, bgr_HWC: Bytes3, options: list[int]) -> str:
    done, body = cv2.imencode(f".{kind}", np.ascontiguousarray(bgr_HWC), options)
    assert done
    return f"data:image/{kind};base64," + base64.b64encode(body.tobytes()).decode("ascii")


def thumbnail(rgb_HWC: Bytes3, side_px: int) -> str:
    """A JPEG data URI whose longer side is at most ``side_px``; never enlarged."""
    height, width = rgb_HWC.shape[:2]
    scale = min(1.0, side_px / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return jpeg_uri(np.asarray(cv2.resize(np.ascontiguousarray(rgb_HWC), size, interpolation=cv2.INTER_AREA)))
