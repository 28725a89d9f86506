"""What a run leaves for a person to look at: its curves, and the cases that its best weights find hardest."""

from __future__ import annotations

from pathlib import Path

from training import curves, hardest, loop, recipe
from training.recipe import Parts, TrainingConfig


def finish(config: TrainingConfig, parts: Parts, folder: Path, *, whole: bool) -> list[Path]:
    """Draw the pages of the run in ``folder``; what was drawn. A run that is not ``whole`` yet has only its curves.

    ``parts`` are the run's own, whose validation cases are rendered already; they hold the best weights afterwards. No
    validation, no best weights and no second page.
    """
    title = f"{config.network}, {getattr(config, config.network).size}: {folder.name}"
    drawn = curves.write(folder, title, *recipe.items(config))
    out = [] if drawn is None else [drawn]
    if whole and (folder / loop.BEST).exists():
        best = loop.load(folder / loop.BEST)
        parts.step.load_state_dict(best["step"])
        rows = parts.hardest()
        if rows:
            out.append(hardest.write(folder, f"{title}, best at step {best['t']:,}", rows))
    return out
