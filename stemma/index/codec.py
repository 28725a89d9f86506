"""Codecs: how a segment holds its vectors. ``exact`` keeps int8 alone; ``paper`` and ``opq`` add 16-byte IVF-PQ codes.

``paper`` is IVF1024,PQ16 on residuals (Deep Image Comparator, section 3.1, eq. 3; 10 of 1024 lists are probed); ``opq``
puts a learned rotation before it, which on 16 bytes ranks as plain PQ does on 32 (docs/facts.md, B1). ``objects`` is
OPQ32,IVF,PQ32 for the embeddings of objects (OE-SIR, section 4.1: 32 bytes an object); it goes with another codec.

Shape letters: N vectors, Q query views, D 256, L inverted lists, B bytes of a code. Everything inside a codec is in the
units of the int8 embeddings; callers divide squared distances by ``scale ** 2``.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss as _faiss
import numpy as np
from numpy.typing import NDArray

from stemma.errors import BadRequest, Corrupt
from stemma.flow import EMBEDDING_DIM
from stemma.index import folder as folders

faiss: Any = _faiss  # the wheel's stubs lack half of what it exports

KINDS = ("exact", "paper", "opq", "objects")
CODE_BYTES = {"exact": 0, "paper": 16, "opq": 16, "objects": 32}
LISTS = {"paper": 1024, "opq": 256, "objects": 1024}
SAMPLES_PER_LIST = 39
"""faiss's own advice; with fewer training vectors a codec gets fewer lists, and its card says so."""
TRAINING_VECTORS_MIN = 256
"""A product quantizer of 8 bits learns 256 centroids."""
OPQ_ITERATIONS = 10
"""The figures of docs/facts.md B1 were taken with ten."""
ENCODE_ROWS = 64
"""Vectors are encoded in padded batches of exactly this many: sgemm of one shape gives every row the same bits."""
TABLE_LISTS_MAX = 4096
"""Up to here the residual table is precomputed (16 kB a list); at 65,536 lists it would take 1 GB (B2)."""

Float32 = NDArray[np.float32]
Vectors = NDArray[np.int8] | Float32


class Codec:
    """A trained quantizer, immutable and content-addressed. ``id`` is ``exact`` or ``<kind>-<digest>``, and the digest
    of ``objects`` behind it where there is one: its segments hold codes of objects too.

    Without ``objects`` a segment's objects are searched exactly.
    """

    def __init__(self, card: dict[str, Any], index: Any | None, objects: Codec | None = None) -> None:
        self.card = card
        self.kind: str = card["kind"]
        self.objects = objects
        self.id = "exact" if self.kind == "exact" else f"{self.kind}-{folders.digest_json(card)[:16]}"
        if objects is not None:
            self.id += f".{objects.id.rpartition('-')[2]}"
        self.code_bytes = CODE_BYTES[self.kind]
        self.nlist: int = card["nlist"]
        self.scale: float | None = card.get("scale")
        self.searching = threading.Lock()
        """Held while the one shared ``inverted`` index is pointed at a caller's lists and searched."""
        self._index = index
        self._rotation: Any | None = None
        self.inverted: Any | None = index
        if index is not None and isinstance(index, faiss.IndexPreTransform):
            self._rotation = faiss.downcast_VectorTransform(index.chain.at(0))
            self.inverted = faiss.downcast_index(index.index)
        self.no_lists = faiss.ArrayInvertedLists(self.nlist, self.code_bytes)
        if self.inverted is not None:
            self.inverted.replace_invlists(self.no_lists, False)
            self.inverted.use_precomputed_table = 0 if self.nlist <= TABLE_LISTS_MAX else -1
            with one_thread():
                self.inverted.precompute_table()

    @property
    def exact(self) -> bool:
        return self.kind == "exact"

    @classmethod
    def unquantized(cls) -> Codec:
        """The codec of exact search; it has nothing to train, save or load."""
        return cls({"kind": "exact", "nlist": 1, "files": {}}, None)

    @classmethod
    def load(cls, folder: Path, objects: Codec | None = None) -> Codec:
        """Raises ``Corrupt`` when the folder is torn or its digest does not match."""
        card = folders.read_json(folder / "codec.json")
        identity = card.pop("id", None)
        if card.get("kind") not in KINDS or not isinstance(card.get("files"), dict):
            raise Corrupt("codec.json describes no codec", subject=str(folder.name))
        if card["kind"] == "exact":
            return cls.unquantized()
        if identity != f"{card['kind']}-{folders.digest_json(card)[:16]}":
            raise Corrupt("codec.json does not match its digest; copy the codec again", subject=folder.name)
        folders.check(folder, "index.faiss", card["files"]["index.faiss"], verify=True)
        flags = faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE
        return cls(card, faiss.read_index(str(folder / "index.faiss"), flags), objects)

    def save(self, folder: Path) -> None:
        """Writes ``folder`` (its name is the caller's choice), synced; one that is already there is left alone."""
        files: dict[str, folders.Content] = {"codec.json": folders.encode_json({**self.card, "id": self.id})}
        if self._index is not None:
            files["index.faiss"] = _serialized(self._index)
        folders.write_folder(folder.parent, folder.name, files)

    @classmethod
    def train(
        cls,
        kind: str,
        vectors_ND: Vectors,
        *,
        seed: int,
        scale: float,
        nlist: int | None = None,
        opq_iterations: int = OPQ_ITERATIONS,
    ) -> Codec:
        """Learns a codec from int8 embeddings, or from float32 unit vectors that are quantized with ``scale`` first.

        The same vectors, seed and machine give the same codec. Raises ``BadRequest`` for an unknown kind or for fewer
        than 256 vectors.
        """
        if kind == "exact":
            return cls.unquantized()
        if kind not in KINDS:
            raise BadRequest(f"a codec is one of {', '.join(KINDS)}", subject=kind)
        sample_ND = _as_int8_units(vectors_ND, scale)
        if len(sample_ND) < TRAINING_VECTORS_MIN:
            detail = f"a codec needs at least {TRAINING_VECTORS_MIN} vectors to learn from, not {len(sample_ND)}"
            raise BadRequest(detail, subject=kind)
        wanted = nlist or LISTS[kind]
        lists = max(1, min(wanted, len(sample_ND) // SAMPLES_PER_LIST))
        index = _train(kind, sample_ND, lists, seed, opq_iterations)
        card = {
            "kind": kind,
            "nlist": lists,
            "nlist_wanted": wanted,
            "code_bytes": CODE_BYTES[kind],
            "dim": EMBEDDING_DIM,
            "scale": scale,
            "trained_on": len(sample_ND),
            "seed": seed,
            "faiss": faiss.__version__,
            "files": {"index.faiss": folders.describe(_serialized(index))},
        }
        return cls(card, index)

    def encode(self, vectors_ND: NDArray[np.int8]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """The inverted list [N] and the code [N, B] of each vector, to the bit whatever is encoded beside it."""
        count = len(vectors_ND)
        lists_N = np.empty(count, np.int64)
        codes_NB = np.empty((count, self.code_bytes), np.uint8)
        with one_thread():
            for start in range(0, count, ENCODE_ROWS):
                part = slice(start, min(start + ENCODE_ROWS, count))
                lists_N[part], codes_NB[part] = self._encode_batch(vectors_ND[part])
        return lists_N, codes_NB

    def _encode_batch(self, vectors_ND: NDArray[np.int8]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        assert self.inverted is not None, "an exact codec has no codes"
        batch_ND = np.zeros((ENCODE_ROWS, EMBEDDING_DIM), np.float32)
        batch_ND[: len(vectors_ND)] = vectors_ND
        if self._rotation is not None:
            batch_ND = self._rotation.apply(batch_ND)
        _, lists_N1 = self.inverted.quantizer.search(batch_ND, 1)
        lists_N = np.ascontiguousarray(lists_N1[:, 0])
        codes_NB = np.empty((ENCODE_ROWS, self.code_bytes), np.uint8)
        pointer = faiss.swig_ptr
        self.inverted.encode_vectors(ENCODE_ROWS, pointer(batch_ND), pointer(lists_N), pointer(codes_NB), False)
        return lists_N[: len(vectors_ND)], codes_NB[: len(vectors_ND)]

    def rank_lists(self, views_QD: NDArray[np.int8]) -> tuple[Float32, NDArray[np.int64], Float32]:
        """Rotated views [Q, D]; all lists nearest first [Q, L], ties by list number; the distance of each list [Q, L].

        One view at a time: a batch of another size would choose another matrix kernel and other last bits (B7).
        """
        assert self.inverted is not None, "an exact codec has no lists"
        rotated_QD = np.empty((len(views_QD), EMBEDDING_DIM), np.float32)
        order_QL = np.empty((len(views_QD), self.nlist), np.int64)
        distance_QL = np.empty((len(views_QD), self.nlist), np.float32)
        for position, view_D in enumerate(views_QD):
            view_1D = np.ascontiguousarray(view_D[None], np.float32)
            rotated_1D = self._rotation.apply(view_1D) if self._rotation is not None else view_1D
            distance_1L, list_1L = self.inverted.quantizer.search(rotated_1D, self.nlist)
            order_L = np.lexsort((list_1L[0], distance_1L[0]))
            rotated_QD[position] = rotated_1D[0]
            order_QL[position] = list_1L[0][order_L]
            distance_QL[position][list_1L[0]] = distance_1L[0]
        return rotated_QD, order_QL, distance_QL


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One faiss thread inside: results must not depend on how a sum was divided over threads."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def mapped_lists(path: Path, start_L: NDArray[np.int64], code_bytes: int) -> Any:
    """Inverted lists over a file that holds codes alone (docs/facts.md, B2); searched with store_pairs only."""
    lists = faiss.OnDiskInvertedLists()
    lists.nlist, lists.code_size = len(start_L) - 1, code_bytes
    lists.filename, lists.read_only = str(path), True
    lists.totsize = int(start_L[-1]) * code_bytes
    lists.lists.clear()
    for start, stop in itertools.pairwise(start_L.tolist()):
        entry = faiss.OnDiskOneList()
        entry.size = entry.capacity = stop - start
        entry.offset = start * code_bytes
        lists.lists.push_back(entry)
    lists.do_mmap()
    return lists


def _train(kind: str, sample_ND: Float32, nlist: int, seed: int, opq_iterations: int) -> Any:
    order_N = np.random.default_rng(seed).permutation(len(sample_ND))
    rotated_ND, code_bytes = np.ascontiguousarray(sample_ND[order_N]), CODE_BYTES[kind]
    with one_thread():
        rotation = None
        if kind != "paper":
            rotation = faiss.OPQMatrix(EMBEDDING_DIM, code_bytes)
            rotation.niter = opq_iterations
            inner = faiss.ProductQuantizer(EMBEDDING_DIM, code_bytes, 8)
            inner.cp.seed, inner.cp.min_points_per_centroid = seed, 1
            rotation.pq = inner
            rotation.train(rotated_ND)
            rotated_ND = rotation.apply(rotated_ND)
        coarse = faiss.IndexFlatL2(EMBEDDING_DIM)
        inverted = faiss.IndexIVFPQ(coarse, EMBEDDING_DIM, nlist, code_bytes, 8)
        inverted.by_residual = True
        # The card says how many vectors there were; faiss would say it on standard error, once per clustering.
        for clustering in (inverted.cp, inverted.pq.cp):
            clustering.seed, clustering.min_points_per_centroid = seed, 1
        inverted.train(rotated_ND)
        whole = inverted if rotation is None else faiss.IndexPreTransform(rotation, inverted)
        # Reading it back gives one owner to all parts, and what later runs will load is what this one uses.
        return faiss.deserialize_index(np.frombuffer(_serialized(whole), np.uint8))


def _serialized(index: Any) -> bytes:
    return bytes(faiss.serialize_index(index).tobytes())


def _as_int8_units(vectors_ND: Vectors, scale: float) -> Float32:
    if vectors_ND.ndim != 2 or vectors_ND.shape[1] != EMBEDDING_DIM:
        raise BadRequest(f"training vectors are [N, {EMBEDDING_DIM}], not {vectors_ND.shape}")
    if vectors_ND.dtype == np.int8:
        return vectors_ND.astype(np.float32)
    units_ND: Float32 = np.clip(np.rint(vectors_ND * scale), -127, 127).astype(np.float32)
    return units_ND
