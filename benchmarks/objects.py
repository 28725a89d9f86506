"""What searching by objects takes: bytes of each object, by the files of a real segment, summed for 100 million images;
and the time of one search by objects in searches of whole images, taken in turn.

    stemma bench objects --json

``bytes_per_object`` by file; ``*_gb`` (10**9) and ``*_gib`` (2**30) for ``images`` with ``objects_per_image`` objects
each. ``scanned_gb`` is what a scan reads (codes, the places they stand for), ``mapped_gb`` what is read where a pair is
scored or shown. ``paper_codes_gib``: OE-SIR's own sum, 8 objects of 32 bytes ("around 24G"). ``image_ms``,
``objects_ms``: one query over ``timed_images`` in memory, both views, exact and without verification.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stemma.catalog import Catalog, Draft
from stemma.config import Settings, load
from stemma.flow import (
    CELL_COUNT,
    CELL_DIM,
    EMBEDDING_DIM,
    OBJECT_DIM,
    OBJECTS_MEAN,
    AnyQuery,
    Encoded,
    ObjectQuery,
    Objects,
    ShardQuery,
)
from stemma.index.codec import CODE_BYTES, TRAINING_VECTORS_MIN, Codec
from stemma.index.object_files import DTYPES, object_arrays
from stemma.index.object_set import ObjectSet
from stemma.index.partition import Partition

IMAGES = 100_000_000
EACH = OBJECTS_MEAN + 1
PAPER_OBJECTS = 8
TIMED_IMAGES = 1_500
ROUNDS = 9
SCALE = 127.0
SCANNED = ("object_codes.u8", "object_places.u32")


def measure(*, rounds: int = ROUNDS, timed_images: int = TIMED_IMAGES) -> dict[str, Any]:
    """Sums, and medians over ``rounds`` in milliseconds with their ratio."""
    return {**memory(), **_times(rounds, timed_images), "rounds": rounds, "timed_images": timed_images}


def memory(images: int = IMAGES, each: int = EACH) -> dict[str, Any]:
    """The sums, from the files of a small segment whose images have ``each`` objects."""
    count = -(-TRAINING_VECTORS_MIN // each)
    rng = np.random.default_rng(0)
    objects = ObjectSet.of(np.arange(count, dtype=np.uint64), [_objects(rng, each) for _ in range(count)])
    codec = Codec.train("objects", objects.vector_MD, seed=0, scale=SCALE, nlist=1, opq_iterations=1)
    files = object_arrays(objects, codec)
    lists = files.pop("object_lists.u64")  # one number a list, whatever the number of objects
    rows = {name: array.nbytes / objects.count for name, array in files.items()}
    rows["object_starts.u64"] = 8 / each  # without the one more at the end
    assert set(rows) == set(DTYPES) - {"object_lists.u64"} and lists.nbytes == 16
    total = {name: images * each * size for name, size in rows.items()}
    return {
        "images": images,
        "objects_per_image": each,
        "bytes_per_object": {name: round(size, 2) for name, size in rows.items()},
        **{f"{name.partition('.')[0].removeprefix('object_')}_gb": _gb(size) for name, size in total.items()},
        "scanned_gb": _gb(sum(total[name] for name in SCANNED)),
        "mapped_gb": _gb(sum(size for name, size in total.items() if name not in SCANNED)),
        "codes_gib": round(total["object_codes.u8"] / 2**30, 2),
        "paper_codes_gib": round(IMAGES * PAPER_OBJECTS * CODE_BYTES["objects"] / 2**30, 2),
    }


def _gb(size: float) -> float:
    return round(size / 1e9, 2)


def _objects(rng: np.random.Generator, each: int) -> Objects:
    box_O4 = np.tile(np.array([0, 0, 1, 1], np.float32), (each, 1))
    return Objects(box_O4=box_O4, score_O=np.ones(each, np.float32), embedding_OD=_units(rng, each, OBJECT_DIM))


def _units(rng: np.random.Generator, count: int, dim: int) -> NDArray[np.int8]:
    vector_ND = rng.normal(size=(count, dim))
    vector_ND /= np.linalg.norm(vector_ND, axis=1, keepdims=True)
    return np.rint(SCALE * vector_ND).astype(np.int8)


def fill(url: str, images: int) -> None:
    """A collection of random embeddings, ``EACH`` objects an image."""
    rng = np.random.default_rng(1)
    cells_NF = np.zeros((CELL_COUNT, CELL_DIM), np.int8)
    drafts = [
        Draft(
            image_id=None,
            name=str(at),
            sha256=f"{at:064x}",
            width=1,
            height=1,
            embedding_D=_units(rng, 1, EMBEDDING_DIM)[0],
            cells_NF=cells_NF,
            pixels=b"none",
            weights="bench",
            job="bench",
            source=str(at),
            metadata={},
            objects=_objects(rng, EACH),
            objects_weights="bench",
        )
        for at in range(images)
    ]
    with Catalog.create(url) as catalog:
        catalog.commit(drafts)


def _times(rounds: int, images: int) -> dict[str, float]:
    rng = np.random.default_rng(2)
    settings = load()
    with tempfile.TemporaryDirectory() as folder:
        url = str(Path(folder) / "objects.stemma")
        fill(url, images)
        with Catalog.open(url) as catalog:
            search = _searcher(catalog, url, settings)
            encoded = Encoded(
                embedding_VD=_units(rng, 2, EMBEDDING_DIM), cells_VNF=None, featureless=False, weights="bench"
            )
            views_VOD = _units(rng, 2 * EACH, OBJECT_DIM).reshape(2, EACH, OBJECT_DIM)
            works: dict[str, AnyQuery] = {
                "image_ms": ShardQuery(encoded=encoded, shortlist=settings.search.shortlist, nprobe=0),
                "objects_ms": ObjectQuery(objects_VOD=views_VOD, images=20, scale=SCALE),
            }
            times: dict[str, list[float]] = {name: [] for name in works}
            for turn in range(rounds + 1):
                for name, query in works.items():
                    begun = time.perf_counter()
                    search(query)
                    if turn:  # the first turn reads what is not in memory yet
                        times[name].append(1e3 * (time.perf_counter() - begun))
    found = {name: round(median(values), 3) for name, values in times.items()}
    return {**found, "objects_vs_image": round(found["objects_ms"] / found["image_ms"], 2)}


def _searcher(catalog: Catalog, url: str, settings: Settings) -> Callable[[AnyQuery], object]:
    partition = Partition(catalog, Path(url), settings, scale=SCALE, codec=Codec.unquantized())
    return lambda query: partition.search([query])
