"""Where the parts of a picture come from: the query with its parts outlined, and beside it the donors that gave them.

A part and its donor bear the same number, light up together under the pointer and under the keyboard's focus
(``report.js``), and are links to each other, so that they are found without a script too. Lines are in shares of the
picture they lie on, 0 to 1. H, W pixels; C channels; N points.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from stemma.api import Donor
from stemma.flow import Bytes3
from stemma.report import overlay
from stemma.report.comparison import changed_percent
from stemma.report.markup import Html, called, join, jpeg_uri, percent, png_uri, text
from stemma.report.overlay import Box, Points
from stemma.vision import geometry
from stemma.vision.geometry import Map33, Size

Mask = NDArray[np.uint8]

MASK_MIN = 128
"""Grey of a mask from which a pixel is the donor's."""
TINT = (38, 110, 255)
"""Of a mask laid over the query: no colour of the heatmap's."""
SPECK_PX = 12
"""Spots of a mask of fewer pixels on the page are not outlined: the line would be longer than what it goes around."""
HEADER_BYTES = 24
"""Of a PNG, up to its height; read before it is decoded, so that a mask is never larger than its box."""
PIN_APART = 0.04
"""Numbers nearer to each other than this would cover each other."""
PIN_STEP_PX = 24
LIKELY_MAX = 0.9999
"""What a person reads of a donor is never a certainty: it was fitted, not seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Whence:
    """An answer's donors with what it takes to show them."""

    donors: Sequence[Donor]
    query_name: str
    query_HWC: Bytes3 | None
    query_size: Size
    """(width, height) in pixels that ``query_box`` speaks of."""
    pictures: Mapping[str, Bytes3] = field(default_factory=dict)
    """Donors' working copies by image id."""
    original_from_query_33: Map33 | None = None
    """Where an original was found and aligned: it shows where in the query a clone was copied from."""
    anchor: str = "a1"
    """Begins every id of this answer: a page has many."""

    @property
    def shown(self) -> list[Donor]:
        return [donor for donor in self.donors if donor.shown]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One shown donor and what is drawn of it over the query."""

    number: int
    donor: Donor
    box: Box
    lines: Sequence[Points]
    """Around what its mask holds, else around its box."""
    mask_HW: Mask | None
    """Of the size that its box has on the page."""
    source_N2: Points | None
    """A clone's other place in the query."""
    shift_px: int
    """How far its number moves to the right, where another one stands already."""


def section(whence: Whence, *, heading: str = "") -> Html:
    """Query with outlined parts beside the donors that are shown; nothing where none is."""
    if not whence.shown:
        return Html("")
    drawn = parts(whence)
    head = f"<h3>{text(heading)}</h3>" if heading else ""
    width, height = whence.query_size
    look = "" if whence.query_HWC is None else _look(whence, drawn)
    cards = join(_card(whence, part) for part in drawn)
    kind = " is-strip" if heading else ""
    return Html(
        f'<section class="parts{kind}" aria-label="{text(heading or "Where the parts come from")}" '
        f'style="--w:{width};--h:{height}">{head}{look}<ol class="donors">{cards}</ol></section>'
    )


def unsure(donors: Sequence[Donor]) -> Html:
    """Donors that nobody should rely on, folded away: names and probabilities alone."""
    left = [donor for donor in donors if not donor.shown]
    if not left:
        return Html("")
    rows = join(
        f'<li><span class="name">{text(called(donor))}</span><b>{text(_likely(donor))}</b></li>' for donor in left
    )
    what = "1 possible donor is" if len(left) == 1 else f"{len(left)} possible donors are"
    return Html(f'<details class="unsure"><summary>{what} too unsure to be shown</summary><ul>{rows}</ul></details>')


def words(whence: Whence) -> str:
    """What was found of a spliced picture, in a sentence."""
    given = [part for part in parts(whence) if not part.donor.clone]
    names = list(dict.fromkeys(called(part.donor) for part in given))
    if not names:
        return ""
    area = changed_percent(_covered(given, whence.query_size))
    if len(names) == 1:
        return f"About {area} of it comes from {names[0]}."
    return f"About {area} of it comes from {len(names)} originals: {', '.join(names[:-1])} and {names[-1]}."


def strip_heading(donors: Sequence[Donor]) -> str:
    """Over the donors of a picture whose original was found."""
    clones = [donor.clone for donor in donors if donor.shown]
    if clones and all(clones):
        return "Copied within the picture"
    return "Parts from elsewhere" if any(clones) else "Parts from other originals"


def parts(whence: Whence) -> list[Part]:
    """The shown donors with their outlines, in the answer's order."""
    drawn: list[Part] = []
    for number, donor in enumerate(whence.shown, 1):
        box = overlay.shares(donor.query_box, whence.query_size)
        mask_HW = _mask(donor, whence.query_size)
        near = sum(max(abs(box[0] - other.box[0]), abs(box[1] - other.box[1])) < PIN_APART for other in drawn)
        drawn.append(
            Part(
                number=number,
                donor=donor,
                box=box,
                lines=(_around(mask_HW, box) if mask_HW is not None else []) or [overlay.frame(box)],
                mask_HW=mask_HW,
                source_N2=_source(whence, donor) if donor.clone else None,
                shift_px=PIN_STEP_PX * near,
            )
        )
    return drawn


def _mask(donor: Donor, query_size: Size) -> Mask | None:
    """The donor's mask at the size its box has on the page; None where it has none that fits."""
    x0, y0, x1, y1 = donor.query_box
    size = round(x1 - x0), round(y1 - y0)
    if donor.mask is None:
        return None
    try:
        body = base64.b64decode(donor.mask, validate=True)
    except binascii.Error:
        return None
    if len(body) < HEADER_BYTES or struct.unpack(">II", body[16:HEADER_BYTES]) != size or min(size) < 1:
        return None
    mask_HW = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_GRAYSCALE)
    if mask_HW is None or mask_HW.shape[::-1] != size:
        return None
    scale = min(1.0, overlay.FRAME_PX_MAX / max(query_size))
    small = cv2.resize(mask_HW, overlay.scaled(size, scale), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8)


def _around(mask_HW: Mask, box: Box) -> list[Points]:
    """Closed lines [N, 2] in shares of the query around what the mask holds."""
    height, width = mask_HW.shape
    inside = cv2.copyMakeBorder((mask_HW >= MASK_MIN).astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    found, _ = cv2.findContours(inside, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    lines = [cv2.approxPolyDP(each, overlay.STRAIGHTEN_PX, True) for each in found if cv2.contourArea(each) >= SPECK_PX]
    corner, size = np.array(box[:2]), np.array(box[2:]) - box[:2]
    # One pixel of border was added: its centres lie half a pixel outside.
    return [corner + size * (line.reshape(-1, 2) - 0.5) / (width, height) for line in lines if len(line) > 2]


def _source(whence: Whence, donor: Donor) -> Points | None:
    """Corners of the place that a clone was copied from, in the query; None where the original is not aligned."""
    if whence.original_from_query_33 is None:
        return None
    x0, y0, x1, y1 = donor.donor_box
    corners_42 = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float64)
    back_33 = geometry.inverse(whence.original_from_query_33)
    if not (np.c_[corners_42, np.ones(4)] @ back_33[2] > overlay.DEPTH_MIN).all():
        return None
    return np.asarray(np.clip(geometry.apply(back_33, corners_42) / np.array(whence.query_size, np.float64), 0, 1))


def _covered(drawn: Sequence[Part], query_size: Size) -> float:
    """Share of the query that the parts cover together."""
    width, height = overlay.scaled(query_size, min(1.0, overlay.FRAME_PX_MAX / max(query_size)))
    covered_HW = np.zeros((height, width), np.uint8)
    for part in drawn:
        x0, y0 = int(part.box[0] * width), int(part.box[1] * height)
        x1, y1 = max(x0 + 1, round(part.box[2] * width)), max(y0 + 1, round(part.box[3] * height))
        under_HW = covered_HW[y0:y1, x0:x1]
        if part.mask_HW is None or not under_HW.size:
            under_HW[:] = 1
        else:
            under_HW |= np.asarray(cv2.resize(part.mask_HW, under_HW.shape[::-1]) >= MASK_MIN, np.uint8)
    return float(covered_HW.mean())


def _look(whence: Whence, drawn: Sequence[Part]) -> Html:
    assert whence.query_HWC is not None
    width, height = whence.query_size
    masks = join(_laid(part) for part in drawn if part.mask_HW is not None)
    lines = join(_lines(part, whence.query_size) for part in drawn)
    # Small parts lie over large ones, so that each can be pointed at.
    areas = {part.number: (part.box[2] - part.box[0]) * (part.box[3] - part.box[1]) for part in drawn}
    over = sorted(areas, key=lambda number: -areas[number])
    links = join(_link(whence, part, over.index(part.number)) for part in drawn)
    wanted = (
        '<label><input class="show-masks" name="masks" type="checkbox" autocomplete="off"> Masks</label>'
        if masks
        else ""
    )
    return Html(
        f'<div class="whole-look"><div class="mosaic"><img src="{jpeg_uri(whence.query_HWC)}" '
        f'alt="Query: {text(whence.query_name)}">{masks}<svg class="drawn" aria-hidden="true" '
        f'viewBox="0 0 {width} {height}" preserveAspectRatio="none">{lines}</svg>{links}</div>'
        f'<div class="controls">{wanted}<span class="hint">Point at a part or a donor, or step through them with Tab: '
        "the other lights up.</span></div></div>"
    )


def _laid(part: Part) -> Html:
    """The mask as colour over the query."""
    assert part.mask_HW is not None
    tinted = np.empty((*part.mask_HW.shape, 4), np.uint8)
    tinted[..., :3], tinted[..., 3] = TINT, part.mask_HW
    return Html(
        f'<img class="mask" data-part="{part.number}" src="{png_uri(tinted)}" alt="" style="{_placed(part.box)}">'
    )


def _placed(box: Box) -> str:
    x0, y0, x1, y1 = (100 * side for side in box)
    return f"left:{x0:.2f}%;top:{y0:.2f}%;width:{x1 - x0:.2f}%;height:{y1 - y0:.2f}%"


def _lines(part: Part, size: Size) -> Html:
    """A part's outline; a clone's other place dashed, and a line between the two."""
    drawn = _path(part.lines, size)
    inner = f'<path class="halo" d="{drawn}"/><path class="line" d="{drawn}"/>'
    if part.source_N2 is not None:
        x0, y0, x1, y1 = part.box
        way = np.stack([part.source_N2.mean(0), np.array([(x0 + x1) / 2, (y0 + y1) / 2])])
        other = _path([part.source_N2], size) + _path([way], size, closed=False)
        inner = f'<path class="halo from" d="{other}"/><path class="line from" d="{other}"/>{inner}'
    return Html(f'<g data-part="{part.number}">{inner}</g>')


def _path(lines: Sequence[Points], size: Size, *, closed: bool = True) -> str:
    return "".join(
        "M" + " L".join(f"{x * size[0]:.1f},{y * size[1]:.1f}" for x, y in line) + ("Z" if closed else "")
        for line in lines
    )


def _link(whence: Whence, part: Part, level: int) -> Html:
    """A part as a link to its donor, over its box in the query."""
    name, number = whence.anchor, part.number
    left = f"left:clamp(0px,{part.shift_px}px,100% - 20px)" if part.shift_px else "left:0"
    return Html(
        f'<a class="part" data-part="{number}" id="{name}-part-{number}" href="#{name}-donor-{number}" '
        f'aria-label="Part {number} of the query" aria-describedby="{name}-said-{number}" '
        f'style="{_placed(part.box)};z-index:{1 + level}"><span class="pin" style="{left}">{number}</span></a>'
    )


def _card(whence: Whence, part: Part) -> Html:
    name, number, donor = whence.anchor, part.number, part.donor
    rgb_HWC = whence.pictures.get(donor.image_id)
    picture = Html('<div class="blank">no picture</div>') if rgb_HWC is None else _picture(part, rgb_HWC)
    if whence.query_HWC is not None:
        picture = Html(
            f'<a class="donor-link" href="#{name}-part-{number}" aria-describedby="{name}-part-{number}">{picture}</a>'
        )
    said = " · ".join(_said(whence, part))
    return Html(
        f'<li class="donor" data-part="{number}" id="{name}-donor-{number}">{picture}<div class="donor-words" '
        f'id="{name}-said-{number}"><span class="pin">{number}</span><span class="name" title="{text(called(donor))}">'
        f"{text(called(donor))}</span>{_kind(donor)}<span>{said}</span></div></li>"
    )


def _kind(donor: Donor) -> str:
    return '<b class="clone">copied from another place of the same picture</b>' if donor.clone else ""


def _said(whence: Whence, part: Part) -> Iterator[str]:
    yield f"<b>{text(_likely(part.donor))}</b> likely"
    yield f"{changed_percent(_covered([part], whence.query_size))} of the query"


def _likely(donor: Donor) -> str:
    return percent(min(donor.probability, LIKELY_MAX))


def _picture(part: Part, rgb_HWC: Bytes3) -> Html:
    """The donor's working copy with the box that the part was taken from."""
    height, width = rgb_HWC.shape[:2]
    size = (width, height)
    drawn = _path([overlay.frame(overlay.shares(part.donor.donor_box, size))], size)
    inner = f'<path class="halo" d="{drawn}"/><path class="line" d="{drawn}"/>'
    return Html(
        f'<span class="donor-look" style="--w:{width};--h:{height}"><img src="{jpeg_uri(rgb_HWC)}" '
        f'alt="Donor {part.number}: {text(called(part.donor))}"><svg class="drawn" aria-hidden="true" '
        f'viewBox="0 0 {width} {height}" preserveAspectRatio="none">{inner}</svg></span>'
    )
