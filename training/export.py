"""A training run's network as weights: the comparator's averaged tensors, or the encoder's, and a card that says where
they come from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from stemma.errors import BadRequest, Corrupt, NotFound
from stemma.networks import weights as files
from stemma.networks.weights import Card, ComparatorCard
from training import comparator, encoder_weights, loop
from training.recipe import TrainingConfig

CURVE_POINTS_MAX = 24
FIRST_VALUES = {"temperature": 1.0, "margin": 0.1, "distinct_min": 0.5, "heatmap_min": 0.5}
UNFITTED = "Temperature, margin and thresholds are not fitted to these weights yet (stemma train calibrate)."
WHAT = {
    "starter": "StarterComparator (stemma/networks/comparator.py), averaged weights in float16; trunk: Lite0.",
    "paper": "PaperComparator (stemma/networks/paper_comparator.py), averaged weights, float16.",
}
DATA = (
    "photos/train of the development data: pairs rendered from the 501 of training/split.json; checkpoint chosen on "
    "photos/val (49) alone. No photograph is part of this file."
)
LICENCES = (
    "network trunk: EfficientNet-Lite0, Apache-2.0",
    "trained on photographs under CC BY 2.0, CC BY-SA 2.0, no known copyright restrictions (COCO 2017, Open Images) "
    "and CC BY-SA 4.0 (CID22)",
)
LIMITS = ("Measured on the renderer it was trained with: figures on other edits will be lower.",)


def export(run: Path, out: Path, data: Path | None = None, keep: Path | None = None) -> Card | ComparatorCard:
    """Write the network of ``run``, a run's folder (its best checkpoint) or a checkpoint, into ``out``.

    Thresholds that stand on a card in ``out`` stay as first values. An encoder needs the development data, to fit its
    scale; what it rendered for that is kept in ``keep``. Raises ``NotFound`` where there is no checkpoint, ``Corrupt``
    for one that cannot be read, ``BadRequest`` for a run of another network and an encoder without data.
    """
    path = checkpoint(run)
    state = loop.load(path)
    config = TrainingConfig.model_validate(state["config"])
    if config.network == "comparator":
        return _comparator(path, state, config, out)
    if config.network != "encoder":
        raise BadRequest(
            f"this is a run of the {config.network}; encoders and comparators can be exported", subject=str(run)
        )
    if data is None:
        raise BadRequest("an encoder's scale is fitted on photographs: --data DIR or STEMMA_DATA", subject="--data")
    figures = curve(path.parent / loop.LOG, int(state["t"]))
    return encoder_weights.write(state, config.encoder, out, data, figures, subject=str(path), keep=keep)


def _comparator(path: Path, state: dict[str, Any], config: TrainingConfig, out: Path) -> ComparatorCard:
    tensors: dict[str, Tensor] = state["step"]["averaged"]
    try:
        comparator.build(config.comparator).load_state_dict(tensors)
    except RuntimeError as error:
        raise Corrupt(f"the checkpoint does not fit its own config: {error}", subject=str(path)) from error
    rows = files.narrow({name: tensor.cpu().numpy() for name, tensor in tensors.items()})
    card = ComparatorCard(
        **_before(out, config.comparator.size),
        size=config.comparator.size,
        digest=files.write_comparator(out, rows),
        side_px=config.comparator.pairs.side_px,
        what=WHAT[config.comparator.size],
        data=DATA,
        command=(
            f"stemma train comparator --data DIR, {state['t']} steps of {config.comparator.batch} pairs; "
            "stemma weights export --run RUN"
        ),
        seed=config.comparator.seed,
        licences=LICENCES,
        limits=(*LIMITS, UNFITTED),
        figures=curve(path.parent / loop.LOG, int(state["t"])),
    )
    files.write_card(out, card)
    return card


def checkpoint(run: Path) -> Path:
    """The file that is meant: itself, or the best, else the last, of a run's folder. Raises ``NotFound``."""
    found = [path for path in (run, run / loop.BEST, run / loop.LAST) if path.is_file()]
    if not found:
        raise NotFound("there is no checkpoint here", subject=str(run))
    return found[0]


def _before(out: Path, size: str) -> dict[str, Any]:
    try:
        card = files.comparator_card(out)
    except NotFound:
        return {"name": f"{size}-comparator", **FIRST_VALUES}
    return {"name": card.name, **{name: getattr(card, name) for name in FIRST_VALUES}}


def curve(log: Path, t: int) -> dict[str, Any]:
    """What the run's log says of its validations up to step ``t``: the last one whole, the score of some before."""
    if not log.is_file():
        return {}
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if '"validation"' in line]
    found = [line for line in lines if line["t"] <= t]
    if not found:
        return {}
    every = -(-len(found) // CURVE_POINTS_MAX)
    scores = [[line["t"], round(line["validation"]["score"], 4)] for line in found[::-1][::every][::-1]]
    last = {name: round(value, 4) for name, value in found[-1]["validation"].items()}
    return {"validation (photos/val, own renderer)": last, "validation score by step": scores}
