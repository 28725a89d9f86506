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
from stemma.catalog.planning import MadeBy
from stemma.catalog.schema import TOMBSTONE_SCHEMA, Draft, split_metadata
from stemma.catalog.state import CATALOG, Now
from stemma.errors import Corrupt
from stemma.flow import Objects

CHUNK_ROWS = 256
"""Rows of one fragment, about 15 MB; compaction joins them later."""
_KEPT = ("image_id", "sha256", "width", "height", "job", "source", "metadata", "pixels")

Described = tuple[NDArray[np.int8], NDArray[np.int8], Objects | None]
"""Embedding [256], cells [196, 32] and objects of one picture; None where nobody looks for objects."""
Describe = Callable[[Sequence[bytes]], Sequence[Described]]
"""Working copies -> what the new weights make of them, in order."""
Moved = Callable[[int], None]
"""Called with the number of images done since the last call."""


def still(_: int) -> None:
    """For nobody who watches."""


def reencode(now: Now, made_by: MadeBy, describe: Describe, moved: Moved) -> tuple[Entry, list[Path]]:
    """Write the new generation; returns its base entry and every file it needs. Nothing is acknowledged here.

    ``made_by`` names the weights of what ``describe`` gives. Searches as of an earlier seq are refused from then on.
    Raises Corrupt for a row that cannot be read, and whatever ``describe`` raises.
    """
    snapshot, before = now.snapshot, now.entry
    live_R = snapshot.row_R[snapshot.live()]
    seq = before.seq + 1
    made: list[Any] = []
    for start in range(0, len(live_R), CHUNK_ROWS):
        old = now.take(live_R[start : start + CHUNK_ROWS], _KEPT, physical(_KEPT, now.columns))
        numbered = _numbered(old, describe(old["pixels"]), made_by, before.next_row + start, now)
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
        weights=made_by.weights,
        objects_weights=made_by.objects_weights,
        files=(),
        base=True,
        declared=before.declared,
        horizon=seq,
    )
    return entry, live_files(catalog) + live_files(tombstones)


def _numbered(
    old: dict[str, Any], described: Sequence[Described], made_by: MadeBy, first_row: int, now: Now
) -> list[Numbered]:
    out = []
    assert made_by.weights is not None
    for place, (embedding_D, cells_NF, objects) in enumerate(described):
        kept = {name: old[name][place] for name in _KEPT}
        draft = Draft(
            name=kept["source"],
            embedding_D=embedding_D,
            cells_NF=cells_NF,
            weights=made_by.weights,
            objects=objects,
            objects_weights=None if objects is None else made_by.objects_weights,
            **{**kept, "width": int(kept["width"]), "height": int(kept["height"])},
        )
        typed, extra = split_metadata(draft.metadata, now.columns)
        out.append(Numbered(first_row + place, kept["image_id"], draft, typed, extra))
    if len(out) != len(old["pixels"]):
        raise ValueError(f"{len(out)} pictures were described of {len(old['pixels'])}")
    return out
