"""A small world for the index: clustered int8 vectors, tiny codecs trained once, and a catalog in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stemma.config import Settings
from stemma.flow import Encoded, ObjectQuery, Objects, ShardQuery
from stemma.index.codec import Codec

SCALE = 360.0
FOREVER = np.uint64(2**64 - 1)


@dataclass(frozen=True)
class MemorySnapshot:
    seq: int
    row_R: NDArray[np.uint64]
    added_R: NDArray[np.uint64]
    deleted_R: NDArray[np.uint64]
    horizon: int = 0

    def live(self, as_of: int | None = None) -> NDArray[np.bool_]:
        time = self.seq if as_of is None else as_of
        return (self.added_R <= time) & (time < self.deleted_R)


@dataclass
class MemoryCatalog:
    """The catalog's read surface over lists: ``stored`` is what a committer wrote, ``seq`` what was read of it."""

    seq: int = 0
    stored: int = 0
    columns: Mapping[str, Any] = field(default_factory=lambda: {"shelf": "integer"})
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    scanned: list[tuple[int, int]] = field(default_factory=list)
    next_row: int = 0

    def commit(
        self,
        vectors: Sequence[NDArray[np.int8]],
        ids: Sequence[str] | None = None,
        skip: int = 0,
        objects: Sequence[Objects] | None = None,
    ) -> list[int]:
        self.stored += 1
        self.next_row += skip
        made = list(range(self.next_row, self.next_row + len(vectors)))
        for position, (row, vector) in enumerate(zip(made, vectors, strict=True)):
            image_id = ids[position] if ids else f"image-{row * 7919 % 10007:05d}-{row}"
            shelf = None if row % 11 == 10 else row % 7
            self.rows[row] = {
                "row": row, "image_id": image_id, "embedding": vector,
                "metadata": {"shelf": shelf}, "added": self.stored, "deleted": FOREVER,
                "objects": objects[position] if objects else make_objects(0, 0),
            }  # fmt: skip
        self.next_row += len(made)
        return made

    def delete(self, rows: Sequence[int]) -> None:
        self.stored += 1
        for row in rows:
            self.rows[row]["deleted"] = np.uint64(self.stored)

    def drop(self, rows: Sequence[int]) -> None:
        """Compaction: rows that died before the horizon are gone for good."""
        self.stored += 1
        for row in rows:
            del self.rows[row]

    def refresh(self) -> int:
        self.seq = self.stored
        return self.seq

    def snapshot(self) -> MemorySnapshot:
        seen = [record for _, record in sorted(self.rows.items()) if record["added"] <= self.seq]
        columns = ([record[name] for record in seen] for name in ("row", "added", "deleted"))
        return MemorySnapshot(self.seq, *(np.array(column, np.uint64) for column in columns))

    def read(self, rows: NDArray[np.uint64], columns: Sequence[str]) -> dict[str, Any]:
        found = [self.rows[row] for row in rows.tolist()]
        return {name: _column(name, [record.get(name, record["row"]) for record in found]) for name in columns}

    def scan(self, columns: Sequence[str], *, rows: tuple[int, int] | None = None) -> Iterator[dict[str, Any]]:
        lo, hi = rows or (0, self.next_row)
        self.scanned.append((lo, hi))
        inside = [row for row in sorted(self.rows) if lo <= row < hi]
        for start in range(0, len(inside), 50):
            yield self.read(np.array(inside[start : start + 50], np.uint64), columns)

    def matching(self, condition: Any) -> NDArray[np.bool_]:
        seen = [record for _, record in sorted(self.rows.items()) if record["added"] <= self.seq]
        return np.array([condition.evaluate(record["metadata"]) is True for record in seen], bool)


def _column(name: str, values: list[Any]) -> Any:
    if name == "row":
        return np.array(values, np.uint64)
    if name == "embedding":
        return np.array(values, np.int8).reshape(len(values), 256)
    if name == "cells":
        return np.array([cells_of(row) for row in values], np.int8).reshape(len(values), 196, 32)
    return values


def make_objects(count: int, seed: int, values: int = 90) -> Objects:
    """``count`` objects with random boxes and embeddings; few ``values`` make many ties."""
    rng = np.random.default_rng((count, seed))
    return Objects(
        box_O4=rng.random((count, 4), np.float32),
        score_O=rng.random(count, np.float32),
        embedding_OD=rng.integers(-values, values + 1, (count, 256)).astype(np.int8),
    )


def cells_of(row: int) -> NDArray[np.int8]:
    return np.random.default_rng(row).integers(-90, 91, (196, 32)).astype(np.int8)


def clustered(count: int, seed: int) -> NDArray[np.int8]:
    """int8 embeddings [N, 256] of unit vectors around 40 centres that are the same for every seed."""
    centres = np.random.default_rng(7).normal(size=(40, 256))
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(0, 40, count)] + 0.6 * rng.normal(size=(count, 256))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.clip(np.rint(vectors * SCALE), -127, 127).astype(np.int8)


@pytest.fixture(scope="session")
def scale() -> float:
    return SCALE


@pytest.fixture(scope="session")
def vectors() -> Callable[[int, int], NDArray[np.int8]]:
    return clustered


@pytest.fixture(scope="session")
def objects_of() -> Callable[..., Objects]:
    return make_objects


@pytest.fixture(scope="session")
def codecs() -> dict[str, Codec]:
    """One of each kind, 12 lists, trained in about a second together."""
    sample = clustered(600, seed=1)
    trained = {
        kind: Codec.train(kind, sample, seed=3, scale=SCALE, nlist=12, opq_iterations=1) for kind in ("paper", "opq")
    }
    return {"exact": Codec.unquantized(), **trained}


OBJECT_SCALE = 200.0


@pytest.fixture(scope="session")
def paired(codecs: dict[str, Codec], tmp_path_factory: pytest.TempPathFactory) -> Codec:
    """The ``opq`` codec of images with one of objects behind it, 10 lists."""
    sample = clustered(600, seed=2)
    objects = Codec.train("objects", sample, seed=4, scale=OBJECT_SCALE, nlist=10, opq_iterations=1)
    folder = tmp_path_factory.mktemp("codecs") / "opq"
    codecs["opq"].save(folder)
    return Codec.load(folder, objects)


@pytest.fixture(scope="session")
def object_question() -> Callable[..., ObjectQuery]:
    def make(objects_VOD: NDArray[np.int8], **fields: Any) -> ObjectQuery:
        return ObjectQuery(**{"objects_VOD": objects_VOD, "images": 2, "scale": OBJECT_SCALE, **fields})

    return make


@pytest.fixture
def catalog() -> MemoryCatalog:
    return MemoryCatalog()


@pytest.fixture(scope="session")
def new_catalog() -> type[MemoryCatalog]:
    return MemoryCatalog


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "photos.stemma"


@pytest.fixture(scope="session")
def settings_with() -> Callable[..., Settings]:
    def make(**search: Any) -> Settings:
        plain = Settings()
        return plain.model_copy(update={"search": plain.search.model_copy(update={"tail_block_rows": 8, **search})})

    return make


@pytest.fixture(scope="session")
def question() -> Callable[..., ShardQuery]:
    def make(views_VD: NDArray[np.int8], *, cells: bool = False, **fields: Any) -> ShardQuery:
        views_VD = np.atleast_2d(views_VD)
        cells_VNF = np.zeros((len(views_VD), 196, 32), np.int8) if cells else None
        encoded = Encoded(embedding_VD=views_VD, cells_VNF=cells_VNF, featureless=False, weights="w")
        return ShardQuery(encoded=encoded, **{"shortlist": 10, "nprobe": 2, **fields})

    return make
