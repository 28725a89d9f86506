"""The demo's questions: pictures with a known original, made from the collection with a fixed seed, and strangers.

Splices are made in ``splices``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from evaluation.pictures import SEED, jpeg
from stemma.api import Answer, Verdict
from stemma.flow import Bytes3
from stemma.vision import benign, edits

Kind = Literal["untouched", "benign", "manipulated", "both", "stranger", "splice"]
KINDS: tuple[Kind, ...] = ("untouched", "benign", "manipulated", "both", "stranger", "splice")
SEVERITIES = (1, 2)
"""What a picture usually meets on its way through the web. All five severities are measured by ``stemma evaluate``."""
EDITED: tuple[Kind, ...] = ("benign", "manipulated", "both")
TRUTH: dict[Kind, Verdict] = {
    "untouched": "identical",
    "benign": "benign",
    "manipulated": "manipulated",
    "both": "manipulated",
    "stranger": "unknown",
    "splice": "spliced",
}
"""The right verdict; an inconclusive one is never right here."""
LEFT_MIN = 0.5
"""Share of an edit's area that a benign change may not take away: a crop could cut off all that was changed."""
ATTEMPTS_MAX = 16
TARGETS = 20
"""Originals that are asked about, each in three ways; fewer are asked more often."""
UNTOUCHED = 10
STRANGERS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture file and what is in it."""

    name: str
    body: bytes
    rgb_HWC: Bytes3
    image_id: str
    """Hex SHA-256 of ``body``: what the collection calls it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A query and its right answer."""

    name: str
    kind: Kind
    made: str
    """How it was made, for a person."""
    body: bytes
    original: str | None
    """Image id of the right original; None for a stranger and for a splice, whose host nobody has."""
    about: str
    """Name of the picture it was made from."""
    donor: str | None = None
    """Image id of the original that a splice's object is from."""

    @property
    def verdict(self) -> Verdict:
        return TRUTH[self.kind]

    def judged(self, answer: Answer) -> bool:
        """The verdict is right, and about the right original."""
        return self.right(answer) and answer.verdict == self.verdict

    def right(self, answer: Answer) -> bool:
        """A stranger or a splice is right without an original, everything else with its own."""
        return (answer.original.image_id if answer.original else None) == self.original

    def traced(self, answer: Answer) -> bool:
        """The donor ranked first is the right one, shown or not."""
        return bool(answer.donors) and answer.donors[0].image_id == self.donor


def questions(originals: Sequence[Picture], strangers: Sequence[Picture], *, seed: int = SEED) -> list[Question]:
    """At least 60 questions where there is one original and one stranger: untouched, three renderings each, strangers.

    The same pictures and seed give the same bytes. Raises ``ValueError`` without originals.
    """
    if not originals:
        raise ValueError("there is nothing to ask about")
    asked = [_untouched(picture) for picture in originals[:UNTOUCHED]]
    for turn in range(TARGETS):
        picture = originals[turn % len(originals)]
        donors = [other.rgb_HWC for other in originals if other.image_id != picture.image_id]
        for place, kind in enumerate(EDITED):
            rng = np.random.default_rng([seed, turn, place])
            asked.append(_edited(picture, kind, rng, donors))
    for turn in range(STRANGERS if strangers else 0):
        rng = np.random.default_rng([seed, TARGETS + turn])
        asked.append(_stranger(strangers[turn % len(strangers)], rng, changed=turn >= len(strangers) or turn % 2 == 1))
    return asked


def _untouched(picture: Picture) -> Question:
    return _question(picture, "untouched", "the very file", picture.body, picture.image_id)


def _edited(picture: Picture, kind: Kind, rng: np.random.Generator, donors: Sequence[Bytes3]) -> Question:
    if kind == "benign":
        shown = benign.render(picture.rgb_HWC, rng, severities=SEVERITIES)
        return _question(picture, kind, ", ".join(shown.log), jpeg(shown.rgb_HWC), picture.image_id)
    edit = edits.manipulate(picture.rgb_HWC, rng, donors)
    rgb_HWC, made = edit.rgb_HWC, [f"{edit.kind} ({(edit.mask_HW > 0).mean():.1%} of the picture)"]
    if kind == "both":
        shown = _keeping(edit, rng)
        rgb_HWC = shown.rgb_HWC
        made += shown.log
    return _question(picture, kind, ", ".join(made), jpeg(rgb_HWC), picture.image_id)


def _keeping(edit: edits.Edited, rng: np.random.Generator) -> benign.Rendered:
    """A benign version that still shows the edit; the last of 16 is taken as it is."""
    area = (edit.mask_HW > 0).mean()
    for _ in range(ATTEMPTS_MAX):
        shown = benign.render(edit.rgb_HWC, rng, severities=SEVERITIES)
        if (shown.carry(edit.mask_HW) > 0).mean() >= LEFT_MIN * area:
            break
    return shown


def _stranger(picture: Picture, rng: np.random.Generator, *, changed: bool) -> Question:
    if not changed:
        return _question(picture, "stranger", "not in the collection", picture.body, None)
    shown = benign.render(picture.rgb_HWC, rng, severities=SEVERITIES)
    return _question(picture, "stranger", ", ".join(["not in the collection", *shown.log]), jpeg(shown.rgb_HWC), None)


def _question(picture: Picture, kind: Kind, made: str, body: bytes, original: str | None) -> Question:
    stem = picture.name.rsplit(".", 1)[0]
    return Question(name=f"{stem} · {kind}", kind=kind, made=made, body=body, original=original, about=picture.name)
