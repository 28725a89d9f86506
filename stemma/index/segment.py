"""A segment: the vectors of a range of rows under one codec, in an immutable, memory-mapped, verifiable folder.

``segments/<row_lo>-<row_hi>-<codec>-<digest>/`` under the collection's folder holds, in inverted-list order,
``vectors.i8`` [N, 256], ``rows.u64`` [N], ``lists.u64`` [L + 1] (where each list starts) and, under a codec,
``codes.u8`` [N, 16] without ids: a code's position is its id (16.00 bytes an image; docs/facts.md, B2). Objects of its
rows, where they have any, stand beside them (``object_files.py``). The digest is that of the manifest, which holds the
digests of the files. Everything here comes back from the catalog.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stemma.errors import Corrupt
from stemma.flow import EMBEDDING_DIM, Unit
from stemma.index import folder as folders
from stemma.index.codec import Codec, mapped_lists
from stemma.index.object_files import DTYPES as OBJECT_DTYPES
from stemma.index.object_files import CodedObjects, Files, joined_files, object_arrays, object_set
from stemma.index.object_set import NO_OBJECTS, ObjectSet

FOLDER = "segments"
_MANIFEST = "manifest.json"
_VERSION = 1
_ROW_DIGITS = 20  # a uint64 row, so that names sort as their rows do


class Name(NamedTuple):
    """What a segment's folder name says, before anything in the folder is believed."""

    row_lo: int
    row_hi: int
    codec: str
    digest: str

    @property
    def text(self) -> str:
        return f"{self.row_lo:0{_ROW_DIGITS}d}-{self.row_hi:0{_ROW_DIGITS}d}-{self.codec}-{self.digest}"

    @property
    def unit(self) -> Unit:
        return Unit(self.row_lo, self.row_hi, "segment")

    @classmethod
    def parse(cls, text: str) -> Name | None:
        row_lo, _, rest = text.partition("-")
        row_hi, _, rest = rest.partition("-")
        codec, _, digest = rest.rpartition("-")
        if not (row_lo.isdecimal() and row_hi.isdecimal() and codec and digest):
            return None
        name = cls(int(row_lo), int(row_hi), codec, digest)
        return name if name.text == text and name.row_lo < name.row_hi else None


class Segment:
    """One opened segment; its arrays are views of the mapped files."""

    def __init__(self, folder: Path, name: Name, codec: Codec, files: dict[str, NDArray[Any]]) -> None:
        self.folder = folder
        self.id = name.text
        self.row_lo, self.row_hi = name.row_lo, name.row_hi
        self.unit = name.unit
        self.row_N: NDArray[np.uint64] = files["rows.u64"]
        self.vectors_ND: NDArray[np.int8] = files["vectors.i8"].reshape(-1, EMBEDDING_DIM)
        self.start_L: NDArray[np.int64] = files["lists.u64"].astype(np.int64)
        self.codes_NB: NDArray[np.uint8] | None = None
        self.lists: Any | None = None
        """faiss's mapped inverted lists over the codes; mapped now, since the folder may be merged away later."""
        if "codes.u8" in files:
            self.codes_NB = files["codes.u8"].reshape(-1, codec.code_bytes)
            mapped = mapped_lists(folder / "codes.u8", self.start_L, codec.code_bytes) if len(self.row_N) else None
            self.lists = mapped
        self.objects = object_set(files)
        """None of them, too, in a segment that was built when nobody looked for objects."""
        self.coded_objects: CodedObjects | None = None
        if codec.objects is not None:
            self.coded_objects = CodedObjects.open(folder, codec.objects, self.objects, files)

    def __len__(self) -> int:
        return len(self.row_N)

    def rows_at(self, position_C: NDArray[np.int64]) -> NDArray[np.uint64]:
        return self.row_N[position_C]

    def vectors_at(self, position_C: NDArray[np.int64]) -> NDArray[np.int8]:
        return self.vectors_ND[position_C]

    @classmethod
    def build(
        cls,
        root: Path,
        codec: Codec,
        rows_N: NDArray[np.uint64],
        vectors_ND: NDArray[np.int8],
        row_lo: int,
        row_hi: int,
        objects: ObjectSet = NO_OBJECTS,
    ) -> Segment:
        """Encodes and writes the segment of these rows, all inside [row_lo, row_hi), synced before it has its name.

        ``root`` is the collection's folder; of ``objects`` those are written that belong to the rows. The same rows,
        vectors, objects and codec give the same bytes and the same id.
        """
        order_N = np.argsort(rows_N, kind="stable")
        rows_N, vectors_ND = rows_N[order_N], vectors_ND[order_N]
        lists_N, codes_NB = (np.zeros(len(rows_N), np.int64), None) if codec.exact else codec.encode(vectors_ND)
        extra: Files = dict(object_arrays(objects.only(np.isin(objects.row_I, rows_N)), codec.objects))
        return _write(root, codec, rows_N, vectors_ND, lists_N, codes_NB, (row_lo, row_hi), extra)

    @classmethod
    def join(cls, root: Path, codec: Codec, parts: Sequence[Segment], keep_R: NDArray[np.uint64]) -> Segment:
        """One segment of all rows of ``parts`` that are in the sorted ``keep_R``; codes are carried, not made anew."""
        rows_N = np.concatenate([part.row_N for part in parts])
        vectors_ND = np.concatenate([part.vectors_ND for part in parts])
        lists_N = np.concatenate([np.repeat(np.arange(codec.nlist), np.diff(part.start_L)) for part in parts])
        order_N = np.argsort(rows_N, kind="stable")
        order_N = order_N[np.isin(rows_N[order_N], keep_R)]
        bounds = (min(part.row_lo for part in parts), max(part.row_hi for part in parts))
        codes = [part.codes_NB for part in parts if part.codes_NB is not None]
        codes_NB = None if codec.exact else np.concatenate(codes)[order_N]
        in_order = sorted(parts, key=lambda part: part.row_lo)
        extra = joined_files([(part.objects, part.coded_objects) for part in in_order], keep_R)
        return _write(root, codec, rows_N[order_N], vectors_ND[order_N], lists_N[order_N], codes_NB, bounds, extra)

    @classmethod
    def open(cls, folder: Path, codec: Codec, *, verify: bool) -> Segment:
        """Maps the segment. Raises ``Corrupt`` on torn files and, with ``verify``, on any byte that has changed."""
        name = Name.parse(folder.name)
        if name is None or name.codec != codec.id:
            raise Corrupt(f"this is no segment under codec {codec.id}", subject=folder.name)
        manifest = folders.read_json(folder / _MANIFEST)
        if folders.digest_json(manifest)[:16] != name.digest:
            raise Corrupt("the manifest does not match the segment's digest; rebuild it", subject=folder.name)
        for file_name, expected in manifest["files"].items():
            folders.check(folder, file_name, expected, verify=verify)
        try:
            files = {file: _mapped(folder / file, _DTYPES[file]) for file in manifest["files"]}
            return cls(folder, name, codec, files)
        except (OSError, RuntimeError) as error:  # faiss reports a file that cannot be opened as RuntimeError
            raise Corrupt(f"a file vanished while it was opened: {error}", subject=folder.name) from error


_DTYPES: dict[str, type] = {
    "rows.u64": np.uint64,
    "vectors.i8": np.int8,
    "lists.u64": np.uint64,
    "codes.u8": np.uint8,
    **OBJECT_DTYPES,
}


def names(root: Path, codec: Codec) -> list[Name]:
    """Every segment there is under ``codec`` by its folder's name, in order of rows; leftovers are no segments."""
    folder = root / FOLDER
    parsed = [Name.parse(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(name for name in parsed if name is not None and name.codec == codec.id)


def chosen(found: Sequence[Name]) -> list[Name]:
    """Those that answer, in order of rows: where a crash left overlapping ones the larger range wins."""
    taken: list[Name] = []
    for name in sorted(found, key=lambda name: (name.row_lo - name.row_hi, name.row_lo, name.digest)):
        if all(name.row_hi <= other.row_lo or other.row_hi <= name.row_lo for other in taken):
            taken.append(name)
    return sorted(taken)


def segment_set(root: Path, codec: Codec) -> tuple[Unit, ...]:
    """The segments of a collection as units to place, by their names alone (nothing is opened)."""
    return tuple(name.unit for name in chosen(names(root, codec)))


def verify_segments(root: Path) -> list[str]:
    """One sentence per damaged segment of any codec, and per leftover of a crash; an empty list is a clean index."""
    folder = root / FOLDER
    return [problem for path in sorted(folder.glob("*")) if (problem := _problem(path)) is not None]


def _problem(path: Path) -> str | None:
    name = Name.parse(path.name)
    if name is None:
        return f"{path.name}: not a segment (left by a crash?); maintenance removes it"
    try:
        manifest = folders.read_json(path / _MANIFEST)
        if folders.digest_json(manifest)[:16] != name.digest:
            return f"{path.name}: the manifest does not match its digest"
        for file_name, expected in manifest["files"].items():
            folders.check(path, file_name, expected, verify=True)
    except Corrupt as error:
        return f"{path.name}: {error.detail}"
    return None


def _mapped(path: Path, dtype: type) -> NDArray[Any]:
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype)
    return np.asarray(np.memmap(path, dtype, "r"))


def _write(
    root: Path,
    codec: Codec,
    rows_N: NDArray[np.uint64],
    vectors_ND: NDArray[np.int8],
    lists_N: NDArray[np.int64],
    codes_NB: NDArray[np.uint8] | None,
    bounds: tuple[int, int],
    extra: Files,
) -> Segment:
    row_lo, row_hi = bounds
    if row_lo >= row_hi or (len(rows_N) and not (row_lo <= rows_N[0] and rows_N[-1] < row_hi)):
        raise ValueError(f"a segment of rows [{row_lo}, {row_hi}) cannot hold rows outside them")
    if len(np.unique(rows_N)) != len(rows_N):
        raise ValueError(f"a segment of rows [{row_lo}, {row_hi}) holds each row once")
    by_list_N = np.argsort(lists_N, kind="stable")
    counts_L = np.bincount(lists_N, minlength=codec.nlist)
    files: dict[str, folders.Content] = {
        "vectors.i8": vectors_ND[by_list_N],
        "rows.u64": rows_N[by_list_N],
        "lists.u64": np.concatenate([[0], np.cumsum(counts_L)]).astype(np.uint64),
    }
    if codes_NB is not None:
        files["codes.u8"] = codes_NB[by_list_N]
    files |= extra
    manifest = {
        "version": _VERSION,
        "row_lo": row_lo,
        "row_hi": row_hi,
        "rows": len(rows_N),
        "codec": codec.id,
        "nlist": codec.nlist,
        "files": {file: folders.describe(content) for file, content in files.items()},
    }
    name = Name(row_lo, row_hi, codec.id, folders.digest_json(manifest)[:16])
    files[_MANIFEST] = folders.encode_json(manifest)
    folder = folders.write_folder(root / FOLDER, name.text, files)
    return Segment.open(folder, codec, verify=False)
