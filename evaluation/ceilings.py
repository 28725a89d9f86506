"""What no search for donors can exceed: the share of spliced objects that any region covers, on either side.

A region covers an object where the two boxes overlap by half (IoU). Asked are the regions that the query was searched
by (an original was found: the heatmap's; else the detector's or the grid's, and the whole picture) and the objects that
are stored of the donor. Shape letters: O objects. Boxes are [x0, y0, x1, y1], of one frame each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evaluation.outcomes import Outcome
from evaluation.queries import Asked, Query
from stemma.catalog import Catalog
from stemma.config import Settings
from stemma.flow import Bytes3, Objects, Pixels
from stemma.splice import overlap
from stemma.terminal import progress
from stemma.vision.decode import DecodePool

COVERED_IOU_MIN = 0.5

RegionsOf = Callable[[Bytes3], NDArray[np.float32]]
"""Working copy -> boxes [O, 4] in its pixels that it is searched by where no original was found."""


class Covered(NamedTuple):
    """Of one splice."""

    query: bool
    donor: bool


def covers(boxes: Iterable[Sequence[float]], wanted: Sequence[float]) -> bool:
    """Whether any of some boxes overlaps the wanted one by half."""
    return any(overlap(box, wanted) >= COVERED_IOU_MIN for box in boxes)


def ceilings(asked: Sequence[Asked], catalog: Catalog, settings: Settings, regions_of: RegionsOf) -> dict[str, Covered]:
    """By file name, of the splices. ``catalog`` holds their donors."""
    spliced = [each for each in asked if each.query.donor is not None]
    stored = stored_objects(catalog, sorted({each.query.donor for each in spliced if each.query.donor}))
    found = {}
    with DecodePool(settings.decode, children=1) as decoder, progress("regions", len(spliced)) as done:
        for each in spliced:
            query = each.query
            assert query.donor is not None and query.query_box is not None
            searched = searched_boxes(each, decoder.decode, regions_of)
            found[query.path.name] = Covered(
                query=covers(searched, query.query_box), donor=_donor_covered(query, stored[query.donor])
            )
            done(1)
    return found


def searched_boxes(asked: Asked, decode: Callable[[bytes], Pixels], regions_of: RegionsOf) -> list[Sequence[float]]:
    """In pixels of the query at its full size."""
    original = asked.answer.original
    if original is not None:
        return [region.box for region in original.comparison.regions] if original.comparison else []
    pixels = decode(asked.query.path.read_bytes())
    share = pixels.width / pixels.rgb_HWC.shape[1]
    boxes: list[Sequence[float]] = (regions_of(pixels.rgb_HWC).astype(np.float64) * share).tolist()
    return boxes


def stored_objects(catalog: Catalog, ids: Sequence[str]) -> dict[str, Objects]:
    """The objects of some images, by image id."""
    rows = catalog.rows_of(ids)
    return dict(zip(ids, catalog.read(rows, ["objects"])["objects"], strict=True)) if ids else {}


def _donor_covered(query: Query, objects: Objects) -> bool:
    assert query.donor_path is not None and query.donor_box is not None
    with Image.open(query.donor_path) as picture:
        width, height = picture.size
    return covers((objects.box_O4 * np.array([width, height] * 2)).tolist(), query.donor_box)


def with_regions(outcomes: Iterable[Outcome], found: Mapping[str, Covered]) -> list[Outcome]:
    """With what was found of the splices, by file name."""
    return [
        replace(each, query_region=found[each.file].query, donor_region=found[each.file].donor)
        if each.file in found
        else each
        for each in outcomes
    ]
