"""IoU of the paper's own heatmap (DIC 3.3, 4.4): 7 x 7, divided by its maximum, over .35, gated by the predicted class.

An answer does not carry this map, so the comparator is run once more on the pairs that were found, from the alignment
that the answer tells. Letters: R, C rows and columns of a heatmap; H, W pixels of the query.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from evaluation.metrics import overlap
from evaluation.outcomes import EDITED, Area, changed, read_mask
from evaluation.queries import Asked
from stemma.api import Comparison
from stemma.config import Settings
from stemma.flow import Bytes3, Judged, Pairing
from stemma.terminal import progress
from stemma.vision import geometry
from stemma.vision.decode import DecodePool, working_copy
from stemma.vision.geometry import Size

GRID_MIN = 0.35
"""DIC 4.4, on the map that was divided by its maximum."""

Compare = Callable[[Bytes3, Sequence[Pairing]], list[Judged]]


def paper_ious(asked: Sequence[Asked], settings: Settings, compare: Compare) -> dict[str, float]:
    """By file name, of the edited queries whose original was found and compared."""
    found = [each for each in asked if each.query.set in EDITED and each.query.mask and each.found and told(each)]
    ious: dict[str, float] = {}
    with DecodePool(settings.decode, children=1) as decoder, progress("7 x 7", len(found)) as done:
        for each in found:
            query, comparison = each.query, told(each)
            assert query.original_path is not None and query.mask is not None and comparison is not None
            pixels = decoder.decode(query.path.read_bytes())
            original = decoder.decode(query.original_path.read_bytes())
            affine = affine_of(comparison, (pixels.width, pixels.height), _size(original.rgb_HWC))
            pairing = Pairing(original=working_copy(original), affine=affine, mirrored=comparison.mirrored)
            (judged,) = compare(pixels.rgb_HWC, [pairing])
            ious[query.path.name] = gated_iou(judged, read_mask(query.mask)) or 0.0
            done(1)
    return ious


def told(asked: Asked) -> Comparison | None:
    """What the answer tells of the pair."""
    return asked.answer.original.comparison if asked.answer.original else None


def gated_iou(judged: Judged, mask_HW: Area) -> float | None:
    """A benign pair shows nothing, a distinct one everything, a manipulated one its map; the largest probability says
    which it is (docs/papers.md 2.1, 11). None where neither map nor mask shows anything."""
    if judged.benign >= max(judged.manipulated, judged.distinct):
        return overlap(np.zeros_like(mask_HW), mask_HW)
    if judged.distinct > judged.manipulated:
        return overlap(np.ones_like(mask_HW), mask_HW)
    return overlap(changed(judged.grid_RC, mask_HW.shape, GRID_MIN), mask_HW)


def affine_of(comparison: Comparison, query_size: Size, original_size: Size) -> tuple[float, ...] | None:
    """The affine map (``Hit.affine``) nearest to a comparison's transform in the middle of the query; sizes (width,
    height), the original's that of its working copy. None when nothing aligned."""
    if comparison.transform is None:
        return None
    unit_33 = geometry.scaling(1 / original_size[0], 1 / original_size[1]) @ geometry.from_rows(comparison.transform)
    unit_33 = unit_33 @ geometry.scaling(*query_size)
    if comparison.mirrored:  # Hit.affine takes points of the mirrored query
        unit_33 = unit_33 @ geometry.mirror(1.0)
    middle = np.array([[0.5, 0.5], [0.75, 0.5], [0.25, 0.5], [0.5, 0.75], [0.5, 0.25]])
    at, right, left, below, above = geometry.apply(unit_33, middle)
    along_x, along_y = 2 * (right - left), 2 * (below - above)
    shift = at - 0.5 * along_x - 0.5 * along_y
    return tuple(float(value) for row in zip(along_x, along_y, shift, strict=True) for value in row)


def _size(picture_HWC: Bytes3) -> Size:
    return picture_HWC.shape[1], picture_HWC.shape[0]
