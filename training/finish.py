"""What a run leaves for a person to look at: its curves, and the cases that its best weights find hardest."""

from __future__ import annotations

from pathlib import Path

from training import curves, data, hardest, loop, recipe
from training.recipe import TrainingConfig
from training.workers import Alone


def finish(config: TrainingConfig, folder: Path, run: Path, *, gpus: bool = False) -> list[Path]:
    """Draw both pages of a run into its folder; what was drawn. ``folder`` holds the development data.

    The second page shows the best checkpoint, and there is none before the first validation.
    """
    title = f"{config.network}, {getattr(config, config.network).size}: {run.name}"
    drawn = curves.write(run, title, *recipe.items(config))
    out = [] if drawn is None else [drawn]
    if (run / loop.BEST).exists() and len(data.validation_photographs(folder)):
        parts = recipe.parts(config, folder, Alone(), device="cuda" if gpus else "cpu")
        best = loop.load(run / loop.BEST)
        parts.step.load_state_dict(best["step"])
        out.append(hardest.write(run, f"{title}, best at step {best['t']:,}", parts.hardest()))
    return out
