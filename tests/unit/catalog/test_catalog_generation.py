"""Moving to other weights: whole or not at all, wherever it is interrupted."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from stemma.catalog import generation
from stemma.catalog.catalog import Catalog
from stemma.catalog.durable import Disk
from stemma.catalog.fsck import fsck
from stemma.catalog.schema import Draft
from stemma.errors import BadRequest, Conflict, Corrupt
from stemma.flow import Objects

MakeDraft = Callable[..., Draft]
KEPT = ["image_id", "sha256", "width", "height", "job", "source", "metadata", "pixels"]


def describe(copies: Sequence[bytes]) -> list[generation.Described]:
    """What other weights would make of a working copy: a function of its bytes."""
    out: list[generation.Described] = []
    for copy in copies:
        rng = np.random.default_rng(list(copy))
        out.append((rng.integers(-9, 9, 256, dtype=np.int8), rng.integers(-9, 9, (196, 32), dtype=np.int8), None))
    return out


def with_objects(copies: Sequence[bytes]) -> list[generation.Described]:
    """As ``describe``, and every second picture (by its bytes) with itself as its only object."""
    whole_14, score_1 = np.array([[0, 0, 1, 1]], np.float32), np.ones(1, np.float32)
    return [
        (e_D, c_NF, None if copy[0] % 2 else Objects(box_O4=whole_14, score_O=score_1, embedding_OD=e_D[None]))
        for copy, (e_D, c_NF, _) in zip(copies, describe(copies), strict=True)
    ]


@pytest.fixture
def started(url: str, draft: MakeDraft) -> str:
    """Seven images: one deleted, one replaced, two with metadata that has columns."""
    with Catalog.create(url) as catalog:
        catalog.commit([draft(n, f"id{n}", metadata={"year": n, "tags": [n]}) for n in range(3)])
        catalog.commit([draft(n, f"id{n}") for n in range(3, 7)])
        catalog.delete(["id3"])
        catalog.commit([draft("new", "id4", metadata={"year": 9})], replace=True)
    return url


def contents(catalog: Catalog) -> dict[str, dict[str, object]]:
    rows = catalog.rows_of(list(catalog.ids()))
    values = catalog.read(rows, KEPT)
    return {one: {name: values[name][at] for name in KEPT} for at, one in enumerate(values["image_id"])}


def vectors(catalog: Catalog) -> list[tuple[bytes, bytes]]:
    values = catalog.read(catalog.rows_of(list(catalog.ids())), ["embedding", "cells"])
    return [(e.tobytes(), c.tobytes()) for e, c in zip(values["embedding"], values["cells"], strict=True)]


def expected(catalog: Catalog) -> list[tuple[bytes, bytes]]:
    copies = catalog.read(catalog.rows_of(list(catalog.ids())), ["pixels"])["pixels"]
    return [(e.tobytes(), c.tobytes()) for e, c, _ in describe(copies)]


@pytest.mark.parametrize("chunk", [2, 256])
def test_everything_live_moves_and_nothing_else_changes(
    started: str, draft: MakeDraft, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(generation, "CHUNK_ROWS", chunk)
    seen: list[int] = []
    with Catalog.open(started, write=True) as catalog:
        before, old_rows, seq = contents(catalog), catalog.snapshot().row_R.tolist(), catalog.seq
        assert catalog.reencode("w2", describe, seen.append) == len(before) == sum(seen) == 6
        assert (contents(catalog), catalog.weights, catalog.seq) == (before, "w2", seq + 1)
        assert vectors(catalog) == expected(catalog)
        # no row number is used again, so nothing that was derived from the old rows can pass for the new
        assert min(catalog.snapshot().row_R.tolist()) > max(old_rows)
        assert catalog.columns == {"year": "integer"}
        assert len(catalog.matching("m_year >= 2")) == 6
        with pytest.raises(BadRequest, match="history"):
            catalog.rows_of(["id0"], as_of=1)
        with pytest.raises(Conflict, match="w2"):
            catalog.commit([draft("later", "id9")])
        assert catalog.commit([draft("later", "id9", weights="w2")]).items[0].status == "stored"
        assert catalog.delete(["id0"]).deleted == ("id0",)
        catalog.compact(retain_s=0, keep_versions_s=0)
        assert len(catalog) == 6 and catalog.find_sha256(str(before["id1"]["sha256"])) is not None
    assert fsck(started).ok


def test_a_reader_goes_on_with_the_old_rows_until_it_looks_again(started: str) -> None:
    reader = Catalog.open(started)
    before, old = contents(reader), vectors(reader)
    with Catalog.open(started, write=True) as catalog:
        catalog.reencode("w2", describe)
    assert (contents(reader), vectors(reader), reader.weights) == (before, old, "w1")
    reader.refresh()
    assert (contents(reader), vectors(reader), reader.weights) == (before, expected(reader), "w2")


class Crash(BaseException):
    """The process is gone: nothing of ours may catch it."""


class Counting(Disk):
    """Counts every effect, and crashes before the ``at``-th."""

    def __init__(self, at: int) -> None:
        self.calls, self._at = 0, at

    def _call(self) -> None:
        self.calls += 1
        if self.calls == self._at:
            raise Crash

    def fsync_file(self, path: Path) -> None:
        self._call()
        super().fsync_file(path)

    def append(self, path: Path, body: bytes) -> None:
        self._call()
        super().append(path, body)

    def rename(self, source: Path, target: Path) -> None:
        self._call()
        super().rename(source, target)

    def step(self, name: str) -> None:
        self._call()


def test_a_crash_before_any_effect_leaves_the_old_or_the_new(
    started: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "CHUNK_ROWS", 4)
    kept = tmp_path / "kept"
    shutil.copytree(started, kept)
    with Catalog.open(started) as reader:
        before, old = contents(reader), vectors(reader)
    whole = Counting(-1)
    with Catalog.open(started, write=True, disk=whole) as catalog:
        catalog.reencode("w2", describe)
        new = vectors(catalog)
    seen = set()
    for at in range(1, whole.calls + 1):
        shutil.rmtree(started)
        shutil.copytree(kept, started)
        catalog = Catalog.open(started, write=True, disk=Counting(at))
        with pytest.raises(Crash):
            catalog.reencode("w2", describe)
        catalog.close()  # the kernel would let go of the lock
        with Catalog.open(started, write=True) as again:
            assert contents(again) == before
            assert (again.weights, vectors(again)) in (("w1", old), ("w2", new))
            seen.add(again.weights)
        assert fsck(started).ok
    assert seen == {"w1", "w2"}


def test_a_failing_encoder_leaves_the_old_generation(started: str) -> None:
    def torn(copies: Sequence[bytes]) -> list[generation.Described]:
        raise Corrupt("a working copy is damaged", subject="pixels")

    def short(copies: Sequence[bytes]) -> list[generation.Described]:
        return describe(copies[1:])

    for failing, kind in ((torn, Corrupt), (short, ValueError)):
        with Catalog.open(started, write=True) as catalog, pytest.raises(kind):
            catalog.reencode("w2", failing)
    with Catalog.open(started, write=True) as catalog:
        assert (catalog.weights, len(catalog)) == ("w1", 6)


def test_an_empty_catalog_moves_too(url: str, draft: MakeDraft) -> None:
    with Catalog.create(url) as catalog:
        catalog.commit([draft(1, "a")])
        catalog.delete(["a"])
        assert catalog.reencode("w2", describe) == 0
        assert catalog.commit([draft(1, "a", weights="w2")]).items[0].status == "stored"
    assert fsck(url).ok


def test_objects_move_with_their_weights(started: str, draft: MakeDraft) -> None:
    with Catalog.open(started, write=True) as catalog:
        assert catalog.objects_weights is None
        catalog.reencode("w2", with_objects, objects_weights="o2")
        rows = catalog.rows_of(list(catalog.ids()))
        values = catalog.read(rows, ["pixels", "objects"])
        assert [len(one) for one in values["objects"]] == [1 - copy[0] % 2 for copy in values["pixels"]]
        assert catalog.objects_weights == "o2"
        # the same encoder with other objects is a move too, and one without any leaves none behind
        catalog.reencode("w2", with_objects, objects_weights="o3")
        assert (catalog.weights, catalog.objects_weights) == ("w2", "o3")
        catalog.reencode("w2", describe)
        assert catalog.objects_weights is None
        assert not any(map(len, catalog.read(catalog.rows_of(list(catalog.ids())), ["objects"])["objects"]))
    assert fsck(started).ok
