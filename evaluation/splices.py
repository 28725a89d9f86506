"""The demo's splices: an object of one of its photographs, cut out by hand, in a scene that no collection holds.

An outline is given in pixels of the photograph. The scene is rendered; the object is scaled, now and then mirrored,
drawn a little towards the scene's colours, laid in with a soft edge, and all of it becomes a JPEG.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from evaluation.pictures import SEED, jpeg, render
from evaluation.questions import Picture, Question
from stemma.flow import Bytes3
from stemma.vision import geometry

Points = tuple[tuple[float, float], ...]

SCENE_SEED = SEED + 1
"""Scenes drawn with it are none of the collection's, which come from ``SEED``."""
SCENE_PX = 640
"""Longer side of a scene, so that its objects have the detail of a picture from the web."""
SHARES = (0.07, 0.16)
"""Range of the part of the scene that an object takes."""
FILLED_MAX = 0.92
"""An object is never longer than this part of the scene's side."""
SOFT_PX = 0.9
GAIN_LIMITS = (0.85, 1.15)
"""How far an object's colours are drawn towards the scene's."""
QUALITIES = (75, 92)
MIRRORED_SHARE = 0.3


def ellipse(x: float, y: float, across: float, down: float, points: int = 48) -> Points:
    """An ellipse around (x, y) with these half axes."""
    turns = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return tuple((float(x + across * np.cos(turn)), float(y + down * np.sin(turn))) for turn in turns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutting:
    """An object in a photograph, and the scene it goes into."""

    name: str
    file: str
    outlines: tuple[Points, ...]
    """Pixels of the photograph; what lies in any of them belongs to the object."""
    scene: str


CUTTINGS: tuple[Cutting, ...] = (
    Cutting(
        name="astronaut",
        file="astronaut.png",
        scene="mountains",
        outlines=(
            (
                *(
                    (228, 15),
                    (262, 20),
                    (290, 45),
                    (301, 84),
                    (294, 112),
                    (268, 132),
                    (262, 160),
                    (292, 190),
                    (306, 232),
                ),
                *((304, 262), (336, 275), (356, 305), (362, 348), (400, 341), (446, 358), (486, 404), (502, 460)),
                *(
                    (508, 512),
                    (22, 512),
                    (24, 440),
                    (22, 380),
                    (44, 290),
                    (68, 244),
                    (112, 214),
                    (114, 178),
                    (138, 150),
                ),
                *((178, 148), (196, 134), (168, 122), (153, 96), (155, 60), (182, 26)),
            ),
        ),
    ),
    Cutting(
        name="space shuttle",
        file="astronaut.png",
        scene="water",
        outlines=(
            (
                *(
                    (392, 0),
                    (452, 0),
                    (456, 70),
                    (454, 195),
                    (470, 236),
                    (452, 252),
                    (474, 274),
                    (470, 286),
                    (412, 287),
                ),
                *((408, 254), (352, 232), (354, 214), (376, 180), (380, 100), (390, 72)),
            ),
        ),
    ),
    Cutting(
        name="cameraman",
        file="camera.png",
        scene="forest",
        outlines=(
            (
                *(
                    (168, 84),
                    (192, 66),
                    (230, 64),
                    (258, 80),
                    (271, 108),
                    (266, 134),
                    (290, 140),
                    (324, 138),
                    (326, 160),
                ),
                *((332, 176), (328, 200), (304, 216), (296, 262), (286, 292), (248, 312), (206, 298), (146, 386)),
                *((152, 511), (0, 511), (0, 270), (26, 220), (62, 158), (112, 118), (160, 106)),
            ),
        ),
    ),
    Cutting(name="cat", file="chelsea.png", scene="city", outlines=(ellipse(208, 142, 158, 136),)),
    Cutting(
        name="coffee cup",
        file="coffee.png",
        scene="fields",
        outlines=(ellipse(290, 112, 118, 97), ellipse(277, 248, 202, 139)),
    ),
    Cutting(
        name="motorcycle",
        file="motorcycle_left.png",
        scene="mountains",
        outlines=(
            (
                *((106, 206), (134, 190), (140, 152), (172, 148), (222, 172), (338, 186), (396, 154), (470, 150)),
                *((490, 120), (510, 84), (532, 76), (566, 128), (560, 196), (616, 262), (640, 306), (676, 350)),
                *((686, 400), (672, 436), (636, 450), (590, 432), (538, 390), (508, 330), (480, 360), (430, 390)),
                *((350, 396), (340, 436), (322, 436), (316, 386), (252, 388), (196, 400), (150, 384), (124, 330)),
                *((126, 280), (146, 250), (112, 240)),
            ),
        ),
    ),
    Cutting(
        name="rocket",
        file="rocket.jpg",
        scene="forest",
        outlines=(
            (
                (306, 140),
                (320, 122),
                (334, 140),
                (338, 404),
                (366, 410),
                (366, 427),
                (266, 427),
                (266, 408),
                (304, 404),
            ),
        ),
    ),
    Cutting(
        name="pagoda",
        file="china.jpg",
        scene="water",
        outlines=(
            (
                *(
                    (198, 28),
                    (212, 28),
                    (222, 66),
                    (262, 104),
                    (318, 114),
                    (318, 132),
                    (304, 150),
                    (330, 178),
                    (326, 196),
                ),
                *((314, 206), (316, 238), (352, 252), (346, 288), (348, 316), (372, 332), (342, 362), (306, 392)),
                *((220, 372), (150, 342), (66, 336), (72, 284), (60, 264), (90, 248), (92, 190), (82, 174), (104, 158)),
                *((102, 128), (94, 112), (140, 102), (188, 66)),
            ),
        ),
    ),
    Cutting(name="dahlia", file="flower.jpg", scene="city", outlines=(ellipse(307, 220, 137, 136),)),
    Cutting(name="helmet", file="astronaut.png", scene="fields", outlines=(ellipse(396, 446, 116, 104),)),
)


def splices(originals: Sequence[Picture], cuttings: Sequence[Cutting] = CUTTINGS) -> list[Question]:
    """A question for each object whose photograph is among the originals; the same ones give the same bytes."""
    known = {picture.name: picture for picture in originals}
    return [
        _question(known[cutting.file], cutting, number)
        for number, cutting in enumerate(cuttings)
        if cutting.file in known
    ]


def _question(donor: Picture, cutting: Cutting, number: int) -> Question:
    rng = np.random.default_rng([SCENE_SEED, number])
    drawn_HWC = render(SCENE_SEED, number, (cutting.scene,))
    larger = SCENE_PX / max(drawn_HWC.shape[:2])
    scene_HWC = geometry.resize(drawn_HWC, (round(drawn_HWC.shape[1] * larger), round(drawn_HWC.shape[0] * larger)))
    spliced_HWC, share = paste(scene_HWC, donor.rgb_HWC, cutting.outlines, rng)
    quality = int(rng.integers(*QUALITIES))
    return Question(
        name=f"{cutting.name} · splice",
        kind="splice",
        made=f"{cutting.name} of {donor.name} in a drawn scene ({share:.1%} of the picture), jpeg {quality}",
        body=jpeg(spliced_HWC, quality),
        original=None,
        donor=donor.image_id,
        about=donor.name,
    )


def paste(
    scene_HWC: Bytes3, donor_HWC: Bytes3, outlines: Sequence[Points], rng: np.random.Generator
) -> tuple[Bytes3, float]:
    """The scene with the outlined object in it, and the share of it that the object takes."""
    height, width = scene_HWC.shape[:2]
    alpha_HW = np.zeros(donor_HWC.shape[:2], np.uint8)
    for outline in outlines:
        cv2.fillPoly(alpha_HW, [np.array(outline).round().astype(np.int32)], 255, cv2.LINE_AA)
    left, top, across, down = cv2.boundingRect(alpha_HW)
    wanted = float(np.exp(rng.uniform(*np.log(SHARES))))
    scale = min(
        float(np.sqrt(wanted * height * width / (alpha_HW > 127).sum())),
        FILLED_MAX * width / across,
        FILLED_MAX * height / down,
    )
    x, y = rng.uniform(0, width - scale * across), rng.uniform(0.4, 1) * (height - scale * down)
    small = max(1, round(scale * donor_HWC.shape[1])), max(1, round(scale * donor_HWC.shape[0]))
    scene_from_small_33 = geometry.translation(x - scale * left, y - scale * top)
    if rng.random() < MIRRORED_SHARE:
        scene_from_small_33 = geometry.mirror(2 * x + scale * across) @ scene_from_small_33
    small_from_scene_33 = geometry.inverse(scene_from_small_33)
    laid_HWC, mask_HW = (
        geometry.warp(geometry.resize(each, small), small_from_scene_33, (width, height))
        for each in (donor_HWC, alpha_HW)
    )
    share_HW1 = cv2.GaussianBlur(mask_HW, (0, 0), SOFT_PX)[..., None].astype(np.float32) / 255
    inside_HW = mask_HW >= 128
    gain_C = np.clip(scene_HWC[inside_HW].mean(0) / laid_HWC[inside_HW].mean(0), *GAIN_LIMITS)
    mixed_HWC = scene_HWC + share_HW1 * (np.clip(laid_HWC * gain_C, 0, 255) - scene_HWC)
    return np.rint(mixed_HWC).astype(np.uint8), float(inside_HW.mean())
