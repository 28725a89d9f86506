"""Random operations against an in-memory twin: whatever happens, the catalog and the dictionary agree."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from stemma.catalog.catalog import Catalog
from stemma.catalog.fsck import fsck
from stemma.catalog.schema import Draft

IDS = [f"id{n}" for n in range(9)] + ["../x", "%2e", "🙂"]
BODIES = 14


@dataclasses.dataclass
class Twin:
    """The rules of docs/architecture.md, once more, over dictionaries. ``past[seq]`` is the collection as it was."""

    live: dict[str, tuple[int, Draft]] = dataclasses.field(default_factory=dict)
    past: dict[int, dict[str, tuple[int, Draft]]] = dataclasses.field(default_factory=lambda: {0: {}})
    seq: int = 0
    next_row: int = 0
    horizon: int = 0

    def commit(self, drafts: list[Draft], replace: bool) -> list[tuple[str | None, str]]:
        said: list[tuple[str | None, str]] = []
        stored = 0
        for draft in drafts:
            image_id = draft.image_id or draft.sha256
            same = [one for one, (_, held) in sorted(self.live.items(), key=_row) if held.sha256 == draft.sha256]
            if image_id in self.live and image_id in same:
                said.append((image_id, "duplicate"))
            elif image_id in self.live and not replace:
                said.append((image_id, "rejected"))
            elif image_id not in self.live and same:
                said.append((same[0], "duplicate"))
            else:
                said.append((image_id, "replaced" if image_id in self.live else "stored"))
                self.live[image_id] = (self.next_row + stored, draft)
                stored += 1
        self.next_row += stored
        self._end(bool(stored))
        return said

    def delete(self, ids: list[str]) -> tuple[set[str], set[str]]:
        there = {one for one in ids if one in self.live}
        for one in there:
            del self.live[one]
        self._end(bool(there))
        return there, set(ids) - there

    def _end(self, changed: bool) -> None:
        if changed:
            self.seq += 1
            self.past[self.seq] = dict(self.live)


def _row(pair: tuple[str, tuple[int, Draft]]) -> int:
    return pair[1][0]


def audit(catalog: Catalog, twin: Twin) -> None:
    """Everything a reader can ask, against the twin."""
    live = dict(sorted(twin.live.items(), key=_row))
    assert catalog.seq == twin.seq
    assert list(catalog.ids()) == list(live)
    assert len(catalog) == len(live)
    rows = catalog.rows_of(live)
    assert rows.tolist() == [row for row, _ in live.values()]
    shuffled = np.random.default_rng(twin.seq).permutation(len(rows))
    read = catalog.read(rows[shuffled], ["image_id", "embedding", "cells", "pixels", "metadata", "source"])
    for at, image_id in zip(shuffled, read["image_id"], strict=False):
        assert image_id == list(live)[at]
    for at, here in enumerate(shuffled):
        draft = list(live.values())[here][1]
        assert np.array_equal(read["embedding"][at], draft.embedding_D)
        assert np.array_equal(read["cells"][at], draft.cells_NF)
        assert (read["pixels"][at], read["metadata"][at], read["source"][at]) == (
            draft.pixels,
            draft.metadata,
            draft.source,
        )
    for seq, past in twin.past.items():
        if seq >= twin.horizon:
            assert catalog.snapshot().count(seq) == len(past)
            for image_id, (row, draft) in past.items():
                assert catalog.rows_of([image_id], as_of=seq)[0] == row
                found = catalog.find_sha256(draft.sha256, as_of=seq)
                assert found is not None and found.sha256 == draft.sha256


def a_batch(rng: random.Random, draft: Callable[..., Draft]) -> list[Draft]:
    out = []
    for _ in range(rng.randint(1, 5)):
        metadata: dict[str, Any] = {"n": rng.randint(-3, 3)} if rng.random() < 0.7 else {}
        if rng.random() < 0.3:
            metadata["tags"] = ["a", {"deep": None}]
        image_id = rng.choice(IDS) if rng.random() < 0.9 else None
        out.append(draft(rng.randrange(BODIES), image_id, metadata=metadata, pixels=rng.randbytes(rng.randint(1, 50))))
    return out


@pytest.mark.parametrize("seed", range(4))
def test_random_operations_agree_with_the_twin(seed: int, url: str, draft: Callable[..., Draft]) -> None:
    rng = random.Random(seed)
    twin, writer = Twin(), Catalog.create(url)
    reader = Catalog.open(url)
    for _ in range(26):
        match rng.choice(["commit"] * 4 + ["replace"] * 2 + ["delete"] * 3 + ["reopen", "compact", "erase"]):
            case "commit" | "replace" as how:
                batch = a_batch(rng, draft)
                items = writer.commit(batch, replace=how == "replace").items
                assert [(item.image_id, item.status) for item in items] == twin.commit(batch, how == "replace")
            case "delete":
                ids = rng.sample(IDS, rng.randint(1, 4))
                result = writer.delete(ids)
                assert (set(result.deleted), set(result.missing)) == twin.delete(ids)
            case "reopen":
                writer.close()
                writer = Catalog.open(url, write=True)
                assert writer.notes == ()
            case "compact":
                writer.compact(fragment_rows=rng.choice([4, 64]))
            case "erase":
                twin.horizon = writer.compact(retain_s=0, keep_versions_s=0, fragment_rows=16).horizon
        if rng.random() < 0.4:
            assert reader.refresh() == twin.seq
            audit(reader, twin)
    reader.refresh()
    for catalog in (writer, reader, Catalog.open(url)):
        audit(catalog, twin)
    writer.close()
    assert fsck(url).ok
