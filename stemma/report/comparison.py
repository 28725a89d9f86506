"""One comparison for an analyst: query over the aligned original with a slider, heatmap, outlines, and it in words.

Without a script the two pictures stand side by side, and so they do on paper; ``report.js`` adds the slider and the
strength of the heatmap. H, W pixels; C channels; R, C rows and columns of a heatmap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stemma.api import Comparison, Probabilities
from stemma.flow import Bytes3
from stemma.report import overlay
from stemma.report.markup import Html, join, jpeg_uri, percent, png_uri, text, thumbnail
from stemma.report.overlay import Aligned, Box, Floats
from stemma.vision.geometry import Size

CHANGED_MIN = 0.5
"""Probability from which a place is called changed, where no card says it."""
HEAT_PERCENT = 50
SPLIT_PERCENT = 50
SPLIT_PERCENT_MAX = 84
"""The line never starts so far to the right that the original could be overlooked."""
SPLIT_MARGIN = 0.04
CROPS_SHOWN = 3
CROP_PX = 168
"""Twice what it takes on the page, for dense screens."""
WHOLE_SHARE = 0.985
"""A query with more of the original than this is said to lie in it as a whole: its rim is half a pixel."""

CLASSES = (("benign", "unchanged", "good"), ("manipulated", "changed", "bad"), ("distinct", "another picture", "none"))
"""Field of ``Probabilities``, how it is called on the page, the tone it has there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """A comparison with what it takes to show it."""

    comparison: Comparison
    query_HWC: Bytes3
    """The query at working size, uint8 RGB."""
    query_size: Size
    """(width, height) in pixels that the comparison speaks of: the query at full size."""
    original_HWC: Bytes3
    """The original's working copy."""
    query_name: str
    original_name: str
    changed_min: float = CHANGED_MIN


def compared(sight: Sight) -> Html:
    """The whole section. Without a transform nothing is laid: the pictures stand side by side as they are."""
    comparison = sight.comparison
    laid = None
    if comparison.transform is not None:
        laid = overlay.aligned(sight.original_HWC, comparison.transform, sight.query_size)
    heatmap_RC = overlay.values(comparison.heatmap) if comparison.heatmap is not None else None
    boxes = overlay.boxes(comparison, sight.query_size)
    split = _split(boxes)
    stage = _stage(sight, laid, heatmap_RC, boxes, split)
    controls = _controls(heatmap_RC is not None, bool(boxes), laid is not None)
    likely = join((_odds(comparison.probabilities), _facts(sight, laid, heatmap_RC)))
    facts = (f"<div>{likely}</div>" if likely else "") + _crops(sight, laid, boxes)
    width, height = sight.query_size
    still = "" if laid is not None else " is-apart"
    return Html(
        f'<section class="compare{still}" style="--w:{width};--h:{height};--split:{split}%;--heat:{HEAT_PERCENT}%">'
        f'<div class="look">{stage}{controls}</div><div class="facts">{facts}</div></section>'
    )


def words(sight: Sight) -> str:
    """What the comparison says, in a sentence or two."""
    comparison = sight.comparison
    if comparison.verdict == "manipulated":
        return _changed_words(sight)
    if comparison.verdict == "benign":
        return "What it shows is unchanged; only size, framing, colour or compression may differ."
    if comparison.verdict == "inconclusive" and comparison.probabilities is not None:
        odds = comparison.probabilities
        leans = "changed" if odds.manipulated >= odds.benign else "unchanged"
        return f"It leans to {leans}, but not by enough. Look at both pictures before you rely on it."
    if comparison.verdict == "identical":
        return "Both files are the same, byte for byte."
    if comparison.verdict == "unknown":
        return "The two show different things: neither was made from the other."
    return ""


def changed_percent(share: float) -> str:
    """An area as a percentage with the digits that it deserves."""
    if 0 < share < 0.001:
        return "< 0.1%"
    return f"{100 * share:.1f}%" if share < 0.1 else f"{100 * share:.0f}%"


def _changed_words(sight: Sight) -> str:
    places = len(sight.comparison.regions)
    if sight.comparison.heatmap is None or not places:
        return "Something in it was changed, but no single place stands out."
    share = overlay.changed_share(overlay.values(sight.comparison.heatmap), sight.changed_min)
    where = "in one place" if places == 1 else f"in {places} places"
    return f"About {changed_percent(share)} of the picture was changed, {where}."


def _split(boxes: Sequence[Box]) -> int:
    """Where the line starts: in the middle, or right of the strongest change, so that the first look shows it."""
    right = boxes[0][2] + SPLIT_MARGIN if boxes else 0.0
    return round(min(SPLIT_PERCENT_MAX, max(SPLIT_PERCENT, 100 * right)))


def _stage(sight: Sight, laid: Aligned | None, heatmap_RC: Floats | None, boxes: Sequence[Box], split: int) -> Html:
    query = jpeg_uri(sight.query_HWC)
    heat = f'<img class="heat" src="{png_uri(overlay.coloured(heatmap_RC))}" alt="">' if heatmap_RC is not None else ""
    marks = _outlines(heatmap_RC, boxes, sight) if boxes else ""
    slider = (
        f'<input class="split" name="split" type="range" min="0" max="100" step="1" value="{split}" autocomplete="off" '
        'aria-label="Share of the width that shows the query; the rest shows the aligned original">'
        '<i class="handle" aria-hidden="true"></i>'
        if laid is not None
        else ""
    )
    return Html(
        f'<div class="stage">'
        f'<div class="back">{_behind(sight, laid)}<span class="slot"><span class="tag">Original</span></span></div>'
        f'<div class="front"><div class="cut"><img src="{query}" alt="Query: {text(sight.query_name)}">{heat}'
        f'<span class="slot"><span class="tag">Query</span></span></div>{marks}</div>{slider}</div>'
    )


def _behind(sight: Sight, laid: Aligned | None) -> Html:
    name = text(sight.original_name)
    if laid is None:
        return Html(f'<img class="whole" src="{jpeg_uri(sight.original_HWC)}" alt="Original: {name}">')
    corners = "" if laid.outline_N2 is None else ", ".join(f"{100 * x:.2f}% {100 * y:.2f}%" for x, y in laid.outline_N2)
    clip = f' style="clip-path:polygon({corners})"' if corners else ""
    return Html(f'<img src="{jpeg_uri(laid.rgb_HWC)}" alt="Original, aligned to the query: {name}"{clip}>')


def _outlines(heatmap_RC: Floats | None, boxes: Sequence[Box], sight: Sight) -> Html:
    """Lines around the regions in the query's pixels, and a number at each; boxes where there is no heatmap."""
    width, height = sight.query_size
    lines = [] if heatmap_RC is None else overlay.outlines(heatmap_RC, boxes, sight.changed_min)
    lines = lines or [overlay.frame(box) for box in boxes]
    drawn = "".join("M" + " L".join(f"{x * width:.1f},{y * height:.1f}" for x, y in line) + "Z" for line in lines)
    tops = [overlay.top(lines, box) for box in boxes]
    # kept inside the picture where a change reaches its rim
    places = [f"left:clamp(10px,{100 * x:.2f}%,100% - 10px);top:max(10px,{100 * y:.2f}%)" for x, y in tops]
    pins = join(f'<span class="pin" style="{place}">{number}</span>' for number, place in enumerate(places, 1))
    return Html(
        f'<div class="marks" aria-hidden="true"><svg viewBox="0 0 {width} {height}" preserveAspectRatio="none">'
        f'<path class="halo" d="{drawn}"/><path class="line" d="{drawn}"/></svg>{pins}</div>'
    )


def _controls(has_heatmap: bool, has_regions: bool, has_slider: bool) -> Html:
    def controls() -> Iterator[str]:
        if has_heatmap:
            yield (
                f'<label class="dial">Heatmap <input name="heat" type="range" min="0" max="100" step="5" '
                f'value="{HEAT_PERCENT}" autocomplete="off"><output>{HEAT_PERCENT}%</output></label>'
            )
        if has_regions:
            yield ('<label><input class="show-marks" type="checkbox" checked autocomplete="off"> Outlines</label>')
        if has_slider:
            yield '<label class="dial"><input class="apart" type="checkbox" autocomplete="off"> Side by side</label>'
        if has_heatmap:
            yield ('<span class="scale">chance of change: 0 <i aria-hidden="true"></i> 100%</span>')

    return Html(f'<div class="controls">{join(controls())}</div>')


def odds_bar(odds: Probabilities) -> Html:
    """Three probabilities as one bar; what it says stands beside it in words."""
    return Html(
        '<span class="odds" aria-hidden="true">'
        + join(f'<i class="t-{tone}" style="width:{100 * getattr(odds, kind):.2f}%"></i>' for kind, _, tone in CLASSES)
        + "</span>"
    )


def _odds(odds: Probabilities | None) -> Html:
    if odds is None:
        return Html("")
    rows = join(
        f'<li><i class="dot t-{tone}" aria-hidden="true"></i>{said}<b>{text(percent(getattr(odds, kind)))}</b></li>'
        for kind, said, tone in CLASSES
    )
    return Html(f'<h3>How likely</h3>{odds_bar(odds)}<ul class="key">{rows}</ul>')


def _facts(sight: Sight, laid: Aligned | None, heatmap_RC: Floats | None) -> Html:
    comparison = sight.comparison

    def facts() -> Iterator[tuple[str, str]]:
        if heatmap_RC is not None:
            share = overlay.changed_share(heatmap_RC, sight.changed_min)
            what = "changed area" if comparison.verdict == "manipulated" else "area that stands out"
            yield what, f"{changed_percent(share)} of the picture" if share else "none"
        if laid is None:
            yield "aligned", "no: the pictures stand as they are"
        elif laid.share < WHOLE_SHARE:
            yield "outside the original", f"{percent(1 - laid.share)} of the picture, not compared"
        if comparison.mirrored:
            yield "mirrored", "yes; the original is shown mirrored too" if laid is not None else "yes"

    rows = join(f"<div><dt>{text(name)}</dt><dd>{text(said)}</dd></div>" for name, said in facts())
    return Html(f'<dl class="said">{rows}</dl>' if rows else "")


def _crops(sight: Sight, laid: Aligned | None, boxes: Sequence[Box]) -> Html:
    """The strongest changes close up, query beside original. A benign verdict can have some too, each under doubt."""
    if laid is None or not boxes:
        return Html("")
    shown = list(zip(boxes, sight.comparison.regions, strict=True))[:CROPS_SHOWN]
    items = join(
        f'<li><span class="pin">{number}</span>'
        f'<img src="{thumbnail(overlay.crop(sight.query_HWC, box), CROP_PX)}" alt="place {number} in the query">'
        f'<img src="{thumbnail(overlay.crop(laid.rgb_HWC, box), CROP_PX)}" alt="place {number} in the original">'
        f"<b>{text(percent(region.strength))}</b></li>"
        for number, (box, region) in enumerate(shown, 1)
    )
    more = len(boxes) - len(shown)
    rest = f'<p class="more">and {more} more</p>' if more else ""
    heads = '<p class="heads" aria-hidden="true"><span>query</span><span>original</span><span>chance</span></p>'
    what = "What changed" if sight.comparison.verdict == "manipulated" else "Places that stand out"
    return Html(f'<div><h3>{what}</h3>{heads}<ol class="crops">{items}</ol>{rest}</div>')
