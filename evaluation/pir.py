"""PIR (OE-SIR 4.3): PS-Battles' variants as queries, its originals as the collection; the right one is the group's own.

    stemma evaluate pir --data FOLDER --json

No filter and no distractors, as the paper names none, and so not comparable with PSBat-Ret. Ranked by objects alone
(eq. 7), for 1 to 16 objects a picture (Table 4): R@1, R@10 and R@100, with the bytes of codes that an image then takes.
The layout is ``training.ps_battles``'s; what cannot be read is left out, and counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from evaluation.metrics import recall_at
from evaluation.object_ranks import COUNTS, Shelf, first
from stemma.errors import BadRequest
from stemma.flow import Bytes3, Int8
from stemma.terminal import progress
from training.ps_battles import PsBattles
from training.views import at_working_size

DEPTHS = (1, 10, 100)

Describe = Callable[[Bytes3], Int8]


def pir(folder: Path, stored: Describe, asked: Describe, *, queries_max: int | None = None) -> dict[str, Any]:
    """``{"pir": {originals, queries, skipped, by_objects: [{objects, R@1, R@10, R@100, n, code_bytes_per_image}]}}``.

    ``stored`` gives the objects of an original [O, D], ``asked`` those of a query [V, O, D], the whole picture last.
    Raises ``NotFound`` and ``Corrupt`` for a folder in another layout, ``BadRequest`` where no pair can be read.
    """
    begun, data = time.monotonic(), PsBattles.open(folder)
    objects: dict[str, Int8] = {}
    originals = {pair.original.id: pair.original for pair in data.pairs}
    with progress("originals", len(originals)) as done:
        for original in originals.values():
            picture = data.read(original)
            if picture is not None:
                objects[original.id] = stored(at_working_size(picture))
            done(1)
    if not objects:
        raise BadRequest("no original of these lists can be read", subject=str(folder))
    shelves = {most: Shelf.of(list(objects), objects.values(), most) for most in COUNTS}
    ranks: dict[int, list[int | None]] = {most: [] for most in COUNTS}
    pairs = [pair for pair in islice(data.pairs, queries_max) if pair.original.id in objects]
    with progress("variants", len(pairs)) as done:
        for pair in pairs:
            picture = data.read(pair.variant)
            if picture is not None:
                objects_VOD = asked(at_working_size(picture))
                for most, shelf in shelves.items():
                    near_I = shelf.distances(first(objects_VOD, most))
                    ranks[most].append(shelf.rank(near_I, pair.original.id))
            done(1)
    rows = [
        {
            "objects": most,
            **{f"R@{k}": recall_at(k, ranks[most]).json() for k in DEPTHS},
            "n": len(ranks[most]),
            "code_bytes_per_image": shelves[most].code_bytes_per_image,
        }
        for most in COUNTS
    ]
    counted = {"originals": len(objects), "queries": len(ranks[COUNTS[0]]), "skipped": len(data.skipped)}
    return {"pir": {**counted, "by_objects": rows}, "pir_seconds": round(time.monotonic() - begun, 1)}
