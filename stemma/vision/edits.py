"""Rendered manipulations with exact masks: what a picture looks like after somebody changed what it says.

Kinds: ``splice`` (a region of another picture), ``clone`` (a region of the same one, elsewhere), ``removal`` (a region
covered from around it), ``caption`` (text, stickers and frames), ``recolour``, ``mosaic`` (a region made unreadable)
and ``warp`` (a region reshaped, the background bent with it). Each kind has two or more tools that leave different
traces, so that a network cannot learn a tool instead of an edit. The changed area is log-uniform between 0.3% and 30%
of the picture (a warp reaches as far as a visible shift needs). A pixel outside the mask is untouched, to the bit; a
change that nobody could see is drawn again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from stemma.vision import altered, drawn, pasted
from stemma.vision.geometry import Picture
from stemma.vision.regions import Alpha, Layer, Mask, Rng, ramp

AREA_MIN, AREA_MAX = 0.003, 0.3

VISIBLE_STEP = 20
"""8-bit steps in the most changed channel from which a pixel counts as changed."""
VISIBLE_SHARE = 0.35
"""Share of the mask's pixels that must be changed so; a clone of sky onto sky stays far below."""
ATTEMPTS_MAX = 16
"""Draws of one kind."""

CUT_STEP = 8
"""Steps below which a tool that touches more than it changes has changed nothing, and the source is put back."""
CUT_CLOSE_SHARE = 0.08
"""Unchanged gaps are closed up to this share of the square root of the area: texture that fell on its like."""

Tool = Callable[[Picture, float, Rng, Sequence[Picture]], Layer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Edited:
    """A manipulated version in the frame and size of its source."""

    rgb_HWC: Picture
    mask_HW: Mask
    """255 where anything was changed, 0 where every pixel is the source's."""
    kind: str
    tool: str
    """Which of the kind's implementations (``TOOLS``) made it."""
    donor: int | None
    """Index of the donor of a splice."""


def manipulate(
    rgb_HWC: Picture, rng: Rng, donors: Sequence[Picture] = (), *, kinds: Sequence[str] | None = None
) -> Edited:
    """One visible manipulation of ``rgb_HWC`` uint8 [H, W, 3], both sides 32 pixels or more.

    ``donors`` are pictures [h, w, 3] that splices take from (they need not be of the same size); without any there are
    no splices. ``kinds`` narrows the draw; a kind's tools are equally likely. The same ``rng`` state gives the same
    bytes. Raises ``ValueError`` for an unknown kind, when none is left, or when the picture is too small for any.
    """
    chosen = tuple(KINDS if kinds is None else kinds)
    unknown = [kind for kind in chosen if kind not in _TOOLS]
    usable = [kind for kind in chosen if donors or kind != "splice"]
    if unknown or not usable:
        raise ValueError(f"no kind of edit called {unknown or chosen} that can be made here; there are {KINDS}")
    kind = usable[int(rng.integers(len(usable)))]
    tool = TOOLS[kind][int(rng.integers(len(TOOLS[kind])))]
    # What this tool cannot visibly change (a clone in a clear sky) gets a caption, which can be seen anywhere.
    for tried_kind, tried in ((kind, tool), ("caption", None)):
        for _ in range(ATTEMPTS_MAX):
            name = tried or TOOLS[tried_kind][int(rng.integers(len(TOOLS[tried_kind])))]
            edited = _attempt(rgb_HWC, rng, donors, tried_kind, name)
            if edited is not None:
                return edited
    raise ValueError(f"no visible edit fits into a picture of {rgb_HWC.shape[1]} x {rgb_HWC.shape[0]} pixels")


def _attempt(rgb: Picture, rng: Rng, donors: Sequence[Picture], kind: str, tool: str) -> Edited | None:
    share = math.exp(rng.uniform(math.log(AREA_MIN), math.log(AREA_MAX)))
    layer = _TOOLS[kind][tool](rgb, share, rng, donors)
    alpha = layer.alpha_HW
    if not alpha.any():
        return None
    out = _blend(rgb, layer.rgb_HWC, alpha)
    if layer.cut:
        alpha = _cut(rgb, out, alpha)
        out = _blend(rgb, layer.rgb_HWC, alpha)
    if not _visible(rgb, out, alpha):
        return None
    mask_HW = np.where(alpha > 0, 255, 0).astype(np.uint8)
    return Edited(rgb_HWC=out, mask_HW=mask_HW, kind=kind, tool=tool, donor=layer.donor)


def _blend(rgb: Picture, layer: Picture, alpha: Alpha) -> Picture:
    left, top, width, height = cv2.boundingRect((alpha > 0).astype(np.uint8))
    inside = np.s_[top : top + height, left : left + width]
    under, share = rgb[inside].astype(np.float32), alpha[inside][..., None]
    out = rgb.copy()
    # Where share is 0 the sum is `under` itself, which is a whole number: untouched to the bit.
    out[inside] = np.rint(under + share * (layer[inside].astype(np.float32) - under)).astype(np.uint8)
    return out


def _cut(before: Picture, after: Picture, alpha: Alpha) -> Alpha:
    """``alpha`` without the places that look as before: small ones are closed, specks dropped, the edge kept soft."""
    left, top, width, height = cv2.boundingRect((alpha > 0).astype(np.uint8))
    inside = np.s_[top : top + height, left : left + width]
    step = np.ascontiguousarray(cv2.absdiff(before[inside], after[inside]).max(-1))
    # Averaged over a few pixels: a change is a place, not the crossing of two textures.
    changed = (cv2.blur(step, (5, 5)) >= CUT_STEP).astype(np.uint8)
    reach = max(1, round(math.sqrt(int(changed.sum())) * CUT_CLOSE_SHARE))
    around = cv2.copyMakeBorder(changed, reach, reach, reach, reach, cv2.BORDER_CONSTANT, value=0)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    closed = cv2.morphologyEx(around, cv2.MORPH_CLOSE, disc)
    kept = cv2.morphologyEx(closed, cv2.MORPH_OPEN, disc)[reach:-reach, reach:-reach]
    out = np.zeros_like(alpha)
    out[inside] = np.minimum(alpha[inside], ramp(np.where(kept > 0, 255, 0).astype(np.uint8), 2))
    return out


def _visible(before: Picture, after: Picture, alpha: Alpha) -> bool:
    inside = alpha > 0
    if not AREA_MIN * 0.9 <= inside.mean() <= AREA_MAX * 1.1:
        return False
    change = cv2.absdiff(before[inside], after[inside]).max(-1)
    return bool((change >= VISIBLE_STEP).mean() >= VISIBLE_SHARE)


_TOOLS: dict[str, dict[str, Tool]] = {
    "splice": {
        "window": pasted.splice_window,
        "poisson": pasted.splice_poisson,
        "polygon": pasted.splice_polygon,
    },
    "clone": {"patch": pasted.clone_patch, "turned": pasted.clone_turned},
    "removal": {
        "telea": pasted.removal_telea,
        "navier": pasted.removal_navier,
        "neighbour": pasted.removal_neighbour,
    },
    "caption": {
        "hershey": drawn.caption_hershey,
        "truetype": drawn.caption_truetype,
        "sticker": drawn.caption_sticker,
        "frame": drawn.caption_frame,
    },
    "recolour": {"lab": altered.recolour_lab, "hue": altered.recolour_hue, "curve": altered.recolour_curve},
    "mosaic": {"pixels": altered.mosaic_pixels, "blur": altered.mosaic_blur, "shuffle": altered.mosaic_shuffle},
    "warp": {"bulge": altered.warp_bulge, "push": altered.warp_push},
}
KINDS: tuple[str, ...] = tuple(_TOOLS)
TOOLS: dict[str, tuple[str, ...]] = {kind: tuple(tools) for kind, tools in _TOOLS.items()}
"""Names of each kind's implementations."""
