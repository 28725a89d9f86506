"""A training run's encoder as weights.

What a run trains lies behind the stride-16 stage (``frozen_cells``), so stored cells would stay what they were, and
with them the match threshold and its probability: both are kept from the card before. The scale of the embeddings is
fitted anew, as ``training.fit`` fitted the first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stemma.errors import BadRequest, Corrupt, NotFound
from stemma.networks import weights as files
from training import encoder, fit, views
from training.encoder import EncoderTraining

FROZEN = ("trunk.stem.", "trunk.cells.", "cells.")
"""Beginnings of the names of what makes the cells."""
HALVED = ("weight", "bias")
"""What ships as float16. Statistics of BatchNorm and projections stay float32, as they came."""
COUNTER = "num_batches_tracked"
WHAT = (
    "EfficientNet-Lite0 without its classifier, from the ImageNet weights; GeM (p = 3) of its 1280 features, centred, "
    "projected to 256, L2; {trained}. Cells: its stride-16 stage, 14 x 14 x 112, centred, PCA to 32, L2. int8 with one "
    "scale each."
)
TRAINED_DEEP = "what lies behind the stride-16 stage, and the projection, trained contrastively on rendered views"
TRAINED_ALL = "trunk and projection trained contrastively on rendered views"
DATA = (
    "photos/train of the development data, divided by training/split.json: trained on views rendered from the 501 "
    "(COCO 2017, CID22, Open Images), checkpoint chosen on photos/val (49) alone; projections began as the PCA of the "
    "501, codec from the same, threshold and calibration from the other 200. No photograph is part of these files."
)
REFIT = "Cells are not those of the weights before: the match threshold must be fitted again (stemma train threshold)."
NEXT = (
    "stemma train codec --data DIR [--features VIEWS.npz, as the export kept them]",
    "stemma train objects --data DIR",
    "stemma train threshold --data DIR",
    "python -m training.donors --data DIR --write",
    "stemma train calibrate --data DIR",
    "stemma weights golden",
)
"""What depends on an encoder, in the order in which it is fitted anew."""


def write(
    state: Mapping[str, Any],
    settings: EncoderTraining,
    out: Path,
    data: Path,
    curve: Mapping[str, Any],
    *,
    subject: str,
    keep: Path | None = None,
) -> files.Card:
    """Write the encoder of a checkpoint into ``out``; the card before is that of ``out``, else the shipped one.

    ``keep``: where the features of the rendered views go, for the codec that is trained on the same.

    Raises ``Corrupt`` for a checkpoint that does not fit its own config, ``BadRequest`` for another size than before.
    """
    before, old = _before(out)
    if before.size != settings.size:
        raise BadRequest(f"the weights before are {before.size}, this run is {settings.size}", subject=subject)
    network = encoder.build(settings)
    try:
        network.load_state_dict(state["step"]["network"])
    except RuntimeError as error:
        raise Corrupt(f"the checkpoint does not fit its own config: {error}", subject=subject) from error
    tensors = stored(network.state_dict())
    cells_kept = same_cells(tensors, old)
    embedding_scale = _scale(data, tensors, before, keep)
    scales = {"embedding_scale": embedding_scale, "cells_scale": before.cells_scale}
    card = dataclasses.replace(
        before,
        digest=files.write_tensors(out, tensors, **scales),
        embedding_scale=embedding_scale,
        what=WHAT.format(trained=TRAINED_DEEP if cells_kept else TRAINED_ALL),
        data=DATA,
        command=(
            f"stemma train encoder --data DIR, {state['t']} steps of {settings.batch} photographs; "
            f"stemma weights export --run RUN --data DIR; {'; '.join(NEXT)}"
        ),
        seed=settings.seed,
        limits=tuple(line for line in before.limits if line != REFIT) + (() if cells_kept else (REFIT,)),
        figures={**before.figures, **curve},
    )
    files.write_card(out, card)
    return card


def _before(out: Path) -> tuple[files.Card, files.Tensors]:
    try:
        return files.read_tensors(out)
    except NotFound:
        return files.read_tensors()


def stored(tensors: Mapping[str, Tensor]) -> files.Tensors:
    """A network's tensors as they ship, without torch's counters of batches."""
    rows = {name: one.cpu().numpy() for name, one in tensors.items() if not name.endswith(COUNTER)}
    halves = files.narrow({name: row for name, row in rows.items() if name.endswith(HALVED)})
    return {**rows, **halves}


def same_cells(tensors: files.Tensors, before: files.Tensors) -> bool:
    """Whether all that makes the cells is what it was, to the bit."""
    names = {name for name in (*tensors, *before) if name.startswith(FROZEN)}
    return all(
        name in tensors and name in before and np.array_equal(tensors[name].astype(np.float32), before[name])
        for name in names
    )


def _scale(data: Path, tensors: files.Tensors, before: files.Card, keep: Path | None) -> float:
    """The scale of the embeddings of rendered views of the 501 under these tensors, as ``training.fit`` chooses it."""
    torch.set_num_threads(1)
    network = views.ready(tensors, before.size)
    features = fit.features_of(network, data, None, per_cells=0)
    if keep is not None:
        features.save(keep)
    return fit.int8_scale(fit.project(network, features.pooled_NPC).astype(np.float64))
