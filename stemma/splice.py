"""Where the pieces of a picture come from: from object hits to donors, their transform and mask (OE-SIR 3.2).

    hits -> without the host and its duplicates -> best 20 (``shortlist``) -> verified by local matching
    of their crops against the query object's (``verify``), the last of them only where there is hope -> the best laid
    over the query and matched again (``look_again``) -> ranked by probability -> refined and outlined
    (``stemma.outline``)

Shape letters: V views of the query (0 upright, 1 mirrored); O objects; N background objects; D 256; H, W pixels;
C channels; P cells (14 x 14), F their features. Frames as in ``vision.geometry``: x to the right, y down, pixel centres
at .5. Boxes are [x0, y0, x1, y1] in pixels of the picture they are in. A transform takes query pixels to pixels of the
donor's working copy, a flip included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from stemma import outline
from stemma.flow import ObjectHit
from stemma.networks import matching
from stemma.networks.featureless import distinct_cells
from stemma.networks.objects import crop_box, large
from stemma.vision import geometry
from stemma.vision.geometry import Map33, Picture

Box4 = tuple[float, float, float, float]
Int8 = NDArray[np.int8]
Float = NDArray[np.float32]
CellsOf = Callable[[Picture, Sequence[float]], Int8]
"""(picture, box) -> int8 [196, 32] of its crop: ``ObjectEncoder.cells``."""
PictureOf = Callable[[int], Picture]
"""Place of a hit -> the working copy of its image, decoded when it is asked for."""

SEARCHED_MAX = 80
"""Nearest images asked of the shards: damping reorders them, and a donor that was 60th may come to be fifth."""
QUERY_BOXES_MAX = 12
"""Objects of a query that are searched for; of 79 splices 8 held a fitting box in .78, 16 in .84."""
VERIFIED_MAX = 20
"""Hits that are verified; each costs the cells of one crop (15 ms) and 0.5 ms of matching."""
VERIFIED_FIRST = 12
"""Hits that are verified in any case; the others while they are as near as donors are (``damped_max``). Of 199 splices
the donor is among the first eight in .804, ten in .824, twelve in .834, twenty in .849."""
NEARER_MAX = -0.1
"""Damped distance above which nothing is verified: what is hardly nearer than the background gave nothing to the query.
One hit in eleven lies there, and of those 199 as many donors are among the first twelve without them."""
PLACE_STEP = 0.02
"""Of damped distance, for each object of the query that goes before a hit's own. Objects come the most telling first,
and what was pasted is among the first four of 16 in .9: of 79 splices the donor was among 8 in .75, .72 without."""
BACKGROUND_NEIGHBOURS = 10
DAMPED_MIN = -0.5
"""Damped distance below which nearer says no more: pictures of a kind that the background lacks are all near to each
other, and none is a donor that local matching does not find."""
DISTINCT_CELLS_MIN = 184
"""Of the 196 of a crop, at least so many resemble no cell elsewhere in it (``featureless.distinct_cells``): walls,
foliage and skies, which repeat themselves, match each other at any place. Of 138 donors of splices none had fewer than
188 in either crop; of fourteen false hits that were said to be donors with .76 or more four had fewer than 184."""
SCALE_MIN, SCALE_MAX = 0.25, 4.0
"""Of a believable map from an object to its donor, as a change of length."""
CLONE_IOU_MAX = 0.3
"""Two places of the host that overlap by more are one place."""
LAID_MAX, LAID_MIN = 3, 0.02
"""Hits that are laid over the query, the likeliest, and the probability under which that is not worth its 25 ms a time:
of 124 splices whose donor is then shown none is lost, and of pictures without a donor half have such a hit."""
LOOKS, LAID_SURE = 2, 60.0
"""Times that a hit is laid over the query, each time by the map that the one before has found, and the match from which
on once is enough: no stranger of 427 came near it but the same stop sign."""
LAID_AGAIN_MIN = 16.0
"""Match of a first look under which a second, by so poor a map, is not worth it. Of the donors of 199 splices all that
are then shown had over 21; of what else is laid, five of six had less than this."""
LAID_GROWN = 0.05
"""Share of its sides by which the place where both boxes meet is grown before it is matched again."""
LAID_SIDE_PX, LAID_SIDE_PX_MIN = 224, 24
"""Of the square that the donor is laid into, and of the place in the query."""
OUTLINED_MAX = 3
"""Donors that are refined and outlined, the best ones: 30 ms each."""
JOINED_AREA_MAX = 4.0
"""Of the window of a mask, in areas of the query's box: a donor's box that is larger is of more than the object."""
OUTLINED_MIN = 0.05
"""Probability of a donor under which it is not worth that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chance:
    """Logistic probability that a verified hit is the donor: of bias + match x score + distance x damped distance."""

    bias: float
    match: float
    distance: float

    @classmethod
    def fitted(cls, donor: Sequence[float]) -> Chance:
        """From the objects' card. Raises ``ValueError`` for other than three numbers."""
        bias, match, distance = donor
        return cls(bias=bias, match=match, distance=distance)

    def of(self, match: float, distance: float) -> float:
        logit = self.bias + self.match * match + self.distance * max(distance, DAMPED_MIN)
        return 1.0 / (1.0 + math.exp(-min(max(logit, -50.0), 50.0)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Chances:
    """Of hits by the match of their crops, and of those that were laid over the query by their match there."""

    crops: Chance
    laid: Chance

    @classmethod
    def fitted(cls, donor: Sequence[float], donor_laid: Sequence[float]) -> Chances:
        """From the objects' card. Raises ``ValueError`` for other than three numbers each."""
        return cls(crops=Chance.fitted(donor), laid=Chance.fitted(donor_laid))

    def of(self, match: float, laid: float | None, distance: float) -> float:
        return self.crops.of(match, distance) if laid is None else self.laid.of(laid, distance)


@dataclass(frozen=True, slots=True, kw_only=True)
class Donor:
    """One verified hit. ``transform_33`` is None, and ``match`` 0, where local matching found no map.

    ``laid`` is the match once more, of the donor laid over the query (``look_again``); None: not looked at again.
    """

    hit: ObjectHit
    query_box: Box4
    donor_box: Box4
    damped: float
    match: float
    probability: float
    transform_33: Map33 | None
    mirrored: bool
    laid: float | None = None
    mask: tuple[outline.Window, Picture] | None = None
    """(box in whole pixels of the query, 255 in it where the query shows the donor's object); None: not outlined."""


def hubness(objects_VOD: Int8, background_ND: Int8, scale: float) -> Float:
    """[V, O]: how near each query object is to things that are in no relation to it: the mean distance (eq. 7's) of
    its ten nearest background objects. A patch of sky is near to everything, and a hit of it says little."""
    dots_VON = objects_VOD.astype(np.float32) @ background_ND.astype(np.float32).T
    most = min(BACKGROUND_NEIGHBOURS, len(background_ND))
    near_VOk = np.sort(dots_VON, axis=2)[..., -most:]
    return np.asarray(2.0 - 2.0 * near_VOk.mean(2) / scale**2, np.float32)


def damped(hit: ObjectHit, hubness_VO: Float) -> float:
    """Distance of a hit less what any picture would have: negative where it is nearer than the background."""
    return float(hit.refined_distance - hubness_VO[int(hit.mirrored), hit.query_object])


def shortlist(
    hits: Sequence[ObjectHit],
    hubness_VO: Float,
    without: Iterable[int] = (),
    most: int = VERIFIED_MAX,
    damped_max: float = math.inf,
) -> list[ObjectHit]:
    """At most ``most`` hits to verify, none of the rows ``without``, by damped distance and the place of the query's
    object (``PLACE_STEP``), then image_id; none farther than ``NEARER_MAX``, and behind the first ``VERIFIED_FIRST``
    none farther than ``damped_max``."""
    dropped = set(without)
    kept = [hit for hit in hits if hit.row not in dropped and damped(hit, hubness_VO) <= NEARER_MAX]
    order = sorted(kept, key=lambda hit: listed(hit, damped(hit, hubness_VO)))[:most]
    return order[:VERIFIED_FIRST] + [hit for hit in order[VERIFIED_FIRST:] if damped(hit, hubness_VO) <= damped_max]


def listed(hit: ObjectHit, damped: float) -> tuple[float, str]:
    """What hits are in order of before they are verified."""
    return damped + PLACE_STEP * hit.query_object, hit.image_id


class Query:
    """The picture asked about, with its objects' boxes; cells of its crops are made once, when first asked for."""

    def __init__(self, rgb_HWC: Picture, box_O4: NDArray[np.floating], cells_of: CellsOf) -> None:
        self.rgb_HWC = rgb_HWC
        self.box_O4 = np.asarray(box_O4, np.float64).reshape(-1, 4)
        self._cells_of = cells_of
        self._turned_HWC: Picture | None = None
        self._cells: dict[tuple[int, bool], Int8] = {}

    @property
    def size(self) -> geometry.Size:
        return self.rgb_HWC.shape[1], self.rgb_HWC.shape[0]

    def box(self, number: int, *, mirrored: bool = False) -> Box4:
        """Of an object, in the picture or in its mirror image."""
        x0, y0, x1, y1 = (float(value) for value in self.box_O4[number])
        return (self.size[0] - x1, y0, self.size[0] - x0, y1) if mirrored else (x0, y0, x1, y1)

    def cells(self, number: int, *, mirrored: bool) -> Int8:
        key = (number, mirrored)
        if key not in self._cells:
            if mirrored and self._turned_HWC is None:
                self._turned_HWC = np.ascontiguousarray(self.rgb_HWC[:, ::-1])
            view_HWC = self._turned_HWC if mirrored else self.rgb_HWC
            assert view_HWC is not None
            self._cells[key] = self._cells_of(view_HWC, self.box(number, mirrored=mirrored))
        return self._cells[key]


def verify(
    query: Query, hit: ObjectHit, donor_HWC: Picture, *, cells_of: CellsOf, chance: Chance, damped: float
) -> Donor:
    """Match the crop of the query's object with that of the hit's, in the view that the hit was found by.

    Boxes under 32 px match nothing (``objects.OBJECT_SIDE_PX_MIN``), nor does what repeats itself.
    """
    size = (donor_HWC.shape[1], donor_HWC.shape[0])
    donor_box = in_pixels(hit.donor_box, size)
    theirs_PF = cells_of(donor_HWC, donor_box)
    ours_PF = query.cells(hit.query_object, mirrored=hit.mirrored)
    found = matching.match(ours_PF[None], theirs_PF[None])[0]
    transform_33, match = None, 0.0
    small = not large(np.array([query.box(hit.query_object), donor_box])).all()
    if found.affine is not None and not small and not _repeats(ours_PF) and not _repeats(theirs_PF):
        box = query.box(hit.query_object, mirrored=hit.mirrored)
        there_33 = between_crops(found.affine, crop_box(box, query.size), crop_box(donor_box, size))
        if _believable(there_33):
            transform_33 = there_33 @ geometry.mirror(query.size[0]) if hit.mirrored else there_33
            match = found.score
    return Donor(
        hit=hit,
        query_box=query.box(hit.query_object),
        donor_box=donor_box,
        damped=damped,
        match=match,
        probability=chance.of(match, damped),
        transform_33=transform_33,
        mirrored=hit.mirrored,
    )


def look_again(query: Query, donor: Donor, donor_HWC: Picture, *, cells_of: CellsOf, chance: Chance) -> Donor:
    """The donor laid over the query where both boxes meet, and matched there again, the better map once more.

    Two boxes of a thing miss different parts of it, and one of them may be turned: cells of their crops then show other
    pieces of it each, and of a true pair no more agree than chance finds in two strangers. Laid over one another all
    cells of the true pair do, and the strangers' as few as before.
    """
    transform_33, score = donor.transform_33, 0.0
    assert transform_33 is not None
    for _ in range(LOOKS):
        window = _meeting(donor, transform_33, query.size)
        if window is None:
            break
        x0, y0, x1, y1 = window
        # the donor at the side of a crop, not of the window: smaller it is smooth, and all that is smooth matches
        there_33 = transform_33 @ _from_unit(window) @ geometry.scaling(1 / LAID_SIDE_PX, 1 / LAID_SIDE_PX)
        theirs_HWC, _ = outline.laid(donor_HWC, there_33, (0, 0, LAID_SIDE_PX, LAID_SIDE_PX))
        ours_HWC = np.ascontiguousarray(query.rgb_HWC[y0:y1, x0:x1])
        ours_PF, theirs_PF = (cells_of(each, (0, 0, each.shape[1], each.shape[0])) for each in (ours_HWC, theirs_HWC))
        found = matching.match(ours_PF[None], theirs_PF[None])[0]
        if found.affine is None:
            break
        step_33 = between_crops(found.affine, window, window)
        if not _believable(transform_33 @ step_33):
            break
        transform_33, score = transform_33 @ step_33, found.score
        if not LAID_AGAIN_MIN <= score < LAID_SURE:
            break
    return replace(donor, transform_33=transform_33, laid=score, probability=chance.of(score, donor.damped))


def _meeting(donor: Donor, transform_33: Map33, size: geometry.Size) -> outline.Window | None:
    """Whole pixels of the query, a little more than where both boxes meet; None where that is next to nothing."""
    back = landed(donor.donor_box, geometry.inverse(transform_33))
    low, high = (
        [pick(donor.query_box[at], back[at]) for at in places] for pick, places in ((max, (0, 1)), (min, (2, 3)))
    )
    if min(high[0] - low[0], high[1] - low[1]) < LAID_SIDE_PX_MIN:
        return None
    return outline.grown((*low, *high), size, LAID_GROWN)


def _believable(transform_33: Map33) -> bool:
    return SCALE_MIN**2 <= abs(float(np.linalg.det(transform_33[:2, :2]))) <= SCALE_MAX**2


def _repeats(cells_PF: Int8) -> bool:
    return distinct_cells(cells_PF) < DISTINCT_CELLS_MIN


def verified(
    query: Query,
    hits: Sequence[ObjectHit],
    picture_of: PictureOf,
    *,
    cells_of: CellsOf,
    chances: Chances,
    hubness_VO: Float,
) -> list[Donor]:
    """The donors that ``hits`` stand for, most probable first: the likeliest ``LAID_MAX`` looked at again, the best
    ``OUTLINED_MAX`` refined and outlined, where they are at all likely.

    ``picture_of`` gives the working copy of the image of a hit, by its place; each is asked for once.
    ``hubness_VO`` is of the query's objects, as the hits number them.
    """
    picture_of, found = cache(picture_of), []
    for place, hit in enumerate(hits):
        off = damped(hit, hubness_VO)
        found.append(verify(query, hit, picture_of(place), cells_of=cells_of, chance=chances.crops, damped=off))
    places = {hit.row: place for place, hit in enumerate(hits)}
    best = ranked(found)
    for place, donor in enumerate(best[:LAID_MAX]):
        if donor.transform_33 is not None and donor.probability >= LAID_MIN:
            there_HWC = picture_of(places[donor.hit.row])
            best[place] = look_again(query, donor, there_HWC, cells_of=cells_of, chance=chances.laid)
    best = ranked(best)
    likely = [donor for donor in best[:OUTLINED_MAX] if donor.probability >= OUTLINED_MIN]
    shown = [outlined(query, donor, picture_of(places[donor.hit.row])) for donor in likely]
    return [*shown, *best[len(likely) :]]


def outlined(query: Query, donor: Donor, donor_HWC: Picture) -> Donor:
    """The donor with its transform refined and its mask; without a transform the mask is the object's box."""
    transform_33 = donor.transform_33
    if transform_33 is not None:
        transform_33 = outline.refined(query.rgb_HWC, donor_HWC, donor.query_box, transform_33)
    window = None if transform_33 is None else joined(donor.query_box, donor.donor_box, transform_33, query.size)
    mask = outline.mask(query.rgb_HWC, donor_HWC, donor.query_box, transform_33, window)
    return replace(donor, transform_33=transform_33, mask=mask)


def joined(
    query_box: Sequence[float], donor_box: Sequence[float], transform_33: Map33, size: geometry.Size
) -> outline.Window | None:
    """Whole pixels around an object's box and where the donor's box comes to lie; None where that is no object's.

    Two detections of a thing miss different parts of it. Of 44 donors found with the detector's boxes the masks have an
    IoU of .607, and .578 with a margin about the query's box.
    """
    back = landed(donor_box, geometry.inverse(transform_33))
    around = (*(min(query_box[i], back[i]) for i in (0, 1)), *(max(query_box[i], back[i]) for i in (2, 3)))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (around, query_box)]
    return outline.grown(around, size, 0.0) if areas[0] <= JOINED_AREA_MAX * areas[1] else None


def ranked(donors: Iterable[Donor]) -> list[Donor]:
    """By probability, highest first, then image_id."""
    return sorted(donors, key=lambda donor: (-donor.probability, donor.hit.image_id))


def in_pixels(box: Sequence[float], size: geometry.Size) -> Box4:
    """A box in 0..1 of a picture of ``size`` (width, height), in its pixels."""
    return (box[0] * size[0], box[1] * size[1], box[2] * size[0], box[3] * size[1])


def between_crops(affine: Sequence[float], ours: Sequence[float], theirs: Sequence[float]) -> Map33:
    """The map of pixels that an affine map in 0..1 of two crops stands for."""
    a, b, c, d, e, f = affine
    unit_33 = np.array([[a, b, c], [d, e, f], [0, 0, 1]], np.float64)
    return _from_unit(theirs) @ unit_33 @ geometry.inverse(_from_unit(ours))


def between_boxes(ours: Sequence[float], theirs: Sequence[float]) -> Map33:
    """OE-SIR's own map of a pair of boxes: a scale and a shift along each axis (docs/papers.md 2.2, 20)."""
    return _from_unit(theirs) @ geometry.inverse(_from_unit(ours))


def _from_unit(box: Sequence[float]) -> Map33:
    return geometry.translation(box[0], box[1]) @ geometry.scaling(box[2] - box[0], box[3] - box[1])


def landed(box: Sequence[float], transform_33: Map33) -> Box4:
    """The box around where the corners of a box go."""
    x0, y0, x1, y1 = box
    corners_42 = geometry.apply(transform_33, np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float64))
    (left, top), (right, bottom) = corners_42.min(0), corners_42.max(0)
    return float(left), float(top), float(right), float(bottom)


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """IoU of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return both / max(sum(areas) - both, 1e-9)
