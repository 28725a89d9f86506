"""A second generation: every live image encoded again from its working copy, by other weights.

Its rows are new ones, behind the old, so that no segment, cache or code of the old generation can pass for the new.
They are written beside the old ones, counted, and then one new journal takes the place of the old (compaction.py): a
crash at any point leaves the whole old generation or the whole new one. What was deleted stays behind with the old
rows, so the history begins anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stemma.catalog.compaction import live_files
from stemma.catalog.encoding import Numbered, encode, physical
from stemma.catalog.journal import Entry
from stemma.catalog.schema import TOMBSTONE_SCHEMA, Draft, split_metadata
from stemma.catalog.state import CATALOG, Now
from stemma.errors import Corrupt

CHUNK_ROWS = 256
"""Rows of one fragment, about 15 MB; compaction joins them later."""
_KEPT = ("image_id", "sha256", "width", "height", "job", "source", "metadata", "pixels")

Described = tuple[NDArray[np.int8], NDArray[np.int8]]
"""Embedding [256] and cells [196, 32] of one picture."""
Describe = Callable[[Sequence[bytes]], Sequence[Described]]
"""Working copies -> what the new weights make of them, in order."""
Moved = Callable[[int], None]
"""Called with the number of images done since the last call."""


def still(_: int) -> None:
    """For nobody who watches."""


def reencode(now: Now, weights: str, describe: Describe, moved: Moved) -> tuple[Entry, list[Path]]:
    """Write the new generation; returns its base entry and every file it needs. Nothing is acknowledged here.

    Objects are left out: they are of the old weights, and are looked for anew. Searches as of an earlier seq are
    refused from then on. Raises Corrupt for a row that cannot be read, and whatever ``describe`` raises.
    """
    snapshot, before = now.snapshot, now.entry
    live_R = snapshot.row_R[snapshot.live()]
    seq = before.seq + 1
    made: list[Any] = []
    for start in range(0, len(live_R), CHUNK_ROWS):
        old = now.take(live_R[start : start + CHUNK_ROWS], _KEPT, physical(_KEPT, now.columns))
        numbered = _numbered(old, describe(old["pixels"]), weights, before.next_row + start, now)
        rows = encode(numbered, seq, now.columns).select(now.catalog.dataset.schema.names)
        made += now.catalog.write(rows)
        moved(len(numbered))
    catalog = now.catalog.overwrite(now.catalog.dataset.schema, made, made)[0]
    if catalog.dataset.count_rows() != len(live_R):
        raise Corrupt(f"{catalog.dataset.count_rows()} rows were written of {len(live_R)}; try again", subject=CATALOG)
    tombstones = now.tombstones.overwrite(TOMBSTONE_SCHEMA, [], [])[0]
    entry = Entry(
        seq=seq,
        at_s=time.time(),
        catalog=catalog.version,
        tombstones=tombstones.version,
        next_row=before.next_row + len(live_R),
        weights=weights,
        files=(),
        base=True,
        declared=before.declared,
        horizon=seq,
    )
    return entry, live_files(catalog) + live_files(tombstones)


def _numbered(
    old: dict[str, Any], described: Sequence[Described], weights: str, first_row: int, now: Now
) -> list[Numbered]:
    out = []
    for place, (embedding_D, cells_NF) in enumerate(described):
        kept = {name: old[name][place] for name in _KEPT}
        draft = Draft(
            name=kept["source"],
            embedding_D=embedding_D,
            cells_NF=cells_NF,
            weights=weights,
            **{**kept, "width": int(kept["width"]), "height": int(kept["height"])},
        )
        typed, extra = split_metadata(draft.metadata, now.columns)
        out.append(Numbered(first_row + place, kept["image_id"], draft, typed, extra))
    if len(out) != len(old["pixels"]):
        raise ValueError(f"{len(out)} pictures were described of {len(old['pixels'])}")
    return out
