"""Did the original that was found give the picture, or a piece of it? What tells a large donor from an edited original.

    python -m training.pieces --data DIR      seven minutes

Large things of training photographs are laid into scenes that are not stored (``pieces``), and into scenes that are
(``wholes``); the latter beside other edits, every second under a benign version. Each picture is matched and compared
with what a search would find it to be, the donor or the host, and where that passes for the original its match and
the share that it explains are told. ``verdict.PIECE_MATCH_MAX`` and ``PIECE_EXPLAINED_MAX`` were chosen by them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from stemma import verdict
from stemma.config import ComparatorSettings, EncoderSettings
from stemma.flow import Pairing, Pixels
from stemma.networks import matching
from stemma.networks import weights as weights_files
from stemma.networks.comparing import Comparator
from stemma.networks.encoder import Encoder
from stemma.terminal import progress
from stemma.vision import benign, edits
from stemma.vision.decode import working_copy
from stemma.vision.geometry import Picture
from training import splices, split, views
from training.data import Photographs

SEED = 77
PIECES, WHOLES, EDITED = 300, 160, 300
"""Large things in scenes that are not stored, in scenes that are, and other edits."""
PIECE_AREA, WHOLE_AREA = (0.2, 0.7), (0.1, 0.6)
"""Share of the scene that a thing covers, at most: it is not enlarged beyond the scene's sides."""
QUALITY = 85


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A picture beside what passes for its original, and the evidence of ``verdict.perhaps_a_piece``."""

    whole: bool
    """It is the original; else it gave a piece."""
    area: float
    """Share of the picture that was changed, or that the piece covers."""
    match: float
    explained: float

    @property
    def little(self) -> bool:
        """So little agrees that the original is looked for as a donor."""
        return verdict.explains_little(self.match, self.explained)


class Pairs:
    """The networks that say of two pictures whether one passes for the original of the other."""

    def __init__(self) -> None:
        self._encoder = Encoder.load(EncoderSettings())
        self._comparator = Comparator.load(ComparatorSettings())
        self._rules = verdict.Rules(match=weights_files.card(None), comparator=self._comparator.card)

    def seen(self, query_HWC: Picture, original_HWC: Picture, *, whole: bool, area: float) -> Seen | None:
        """None: it does not pass for the original, or not for a changed one."""
        query_HWC = views.at_working_size(benign.jpeg_round_trip(query_HWC, QUALITY))
        original_HWC = views.at_working_size(original_HWC)
        ours = self._encoder.encode(query_HWC, mirrored=True)
        theirs = self._encoder.encode(original_HWC, mirrored=False)
        assert ours.cells_VNF is not None
        assert theirs.cells_VNF is not None
        found = matching.match(ours.cells_VNF, theirs.cells_VNF)[0]
        if found.score < self._rules.match.match_threshold:
            return None
        height, width = original_HWC.shape[:2]
        copy = working_copy(Pixels(rgb_HWC=original_HWC, width=width, height=height, sha256="", format="JPEG"))
        pairing = Pairing(original=copy, affine=found.affine, mirrored=found.mirrored)
        (judged,) = self._comparator.compare(query_HWC, [pairing])
        if judged.distinct >= self._rules.comparator.distinct_min or self._rules.verdict(judged) == "benign":
            return None
        return Seen(whole=whole, area=area, match=found.score, explained=judged.explained)


def rendered(data: Path) -> Iterator[tuple[bool, Picture, Picture, float]]:
    """(whether the original is the whole, picture, original, share of it that was changed or laid in)."""
    listed, known = split.load(), splices.annotated(data)
    trained = sorted((*listed.train, *listed.calibrate))
    fresh = sorted(path.name for path in (data / "photos/val").glob("*.jpg"))
    stored = [name for name in trained if name not in known]
    photographs = Photographs(
        data / "photos", [*(f"train/{name}" for name in trained), *(f"val/{name}" for name in fresh)]
    )
    places = {name: place for place, name in enumerate([*trained, *fresh])}
    cuts = splices.cut_outs(data, set(trained))
    for whole, count, scenes, area in ((False, PIECES, fresh, PIECE_AREA), (True, WHOLES, stored, WHOLE_AREA)):
        for number in range(count):
            rng = np.random.default_rng([SEED, int(whole), number])
            cut = cuts[int(rng.integers(len(cuts)))]
            scene_HWC, donor_HWC = (
                photographs[places[name]] for name in (scenes[int(rng.integers(len(scenes)))], cut.name)
            )
            made = splices.splice(scene_HWC, donor_HWC, cut, rng, area=area)
            yield whole, made.rgb_HWC, scene_HWC if whole else donor_HWC, float((made.mask_HW > 0).mean())
    for number in range(EDITED):
        rng = np.random.default_rng([SEED, 2, number])
        original_HWC, other_HWC = (photographs[places[stored[int(rng.integers(len(stored)))]]] for _ in range(2))
        edited = edits.manipulate(original_HWC, rng, [other_HWC])
        shown_HWC = benign.render(edited.rgb_HWC, rng).rgb_HWC if number % 2 else edited.rgb_HWC
        yield True, shown_HWC, original_HWC, float((edited.mask_HW > 0).mean())


def measured(data: Path) -> list[Seen]:
    """Whatever passes for a changed original. Raises ``NotFound`` for development data that is not there."""
    pairs, found = Pairs(), list[Seen]()
    with progress("pictures compared", PIECES + WHOLES + EDITED) as done:
        for whole, query_HWC, original_HWC, area in rendered(data):
            one = pairs.seen(query_HWC, original_HWC, whole=whole, area=area)
            found += [] if one is None else [one]
            done(1)
    return found


def table(found: Sequence[Seen]) -> str:
    """Each piece that passes for an original, and the originals of which least agrees."""
    lines = [f"{'':8} {'area':>5} {'match':>6} {'explained':>10}"]
    for whole, asked in ((False, PIECES), (True, WHOLES + EDITED)):
        some = sorted((one for one in found if one.whole == whole), key=lambda one: one.explained)
        name = "whole" if whole else "piece"
        lines += [f"{name:8} {one.area:5.2f} {one.match:6.1f} {one.explained:10.2f}" for one in some[:10]]
        under = sum(one.little for one in some)
        lines.append(f"{len(some)} of {asked} pass for a changed original; {under} are looked for as a donor")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Tell large donors from edited originals.")
    parser.add_argument("--data", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    print(table(measured(args.data)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
