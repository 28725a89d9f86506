"""The way of an image: file or bytes, decode, working copy, encode, one synced commit, acknowledged.

``prepare`` is the whole of it for one picture, up to the draft that a committer takes; ``ingest_sources`` drives it for
many with the machine's cores, a commit per batch, and one line in ``rejects.jsonl`` for everything refused.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO, TypedDict

from stemma.api import IngestItem, IngestResult, ItemStatus, Metadata, Problem, Wire
from stemma.catalog.catalog import Catalog, Draft
from stemma.catalog.generation import Describe, Described
from stemma.config import Settings
from stemma.donors import Finder
from stemma.errors import BadRequest, NotFound, StemmaError, TooLarge
from stemma.finder import Finder as ObjectFinder
from stemma.networks import encoder as networks
from stemma.query import Decoder, Encoder
from stemma.vision.decode import read_working_copy, working_copy

REJECTS = "rejects.jsonl"
Progress = Callable[[int], None]
"""Called with the number of pictures done since the last call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A picture to be ingested: where its bytes are and what is known of it."""

    name: str
    read: Callable[[], bytes]
    image_id: str | None = None
    metadata: Metadata = field(default_factory=dict)


class IngestSummary(Wire):
    """What became of an ingest: ``seen = stored + duplicates + replaced + rejected``."""

    seq: int
    seen: int
    stored: int
    duplicates: int
    replaced: int
    rejected: int
    seconds: float
    items: tuple[IngestItem, ...]
    """The first ``limits.batch_items_max`` items, in order; every reject is in ``rejects_file``."""
    rejects_file: str | None = None


async def prepare(
    body: bytes,
    *,
    name: str,
    image_id: str | None,
    metadata: Metadata,
    job: str,
    decoder: Decoder,
    encoder: Encoder,
    finder: Finder | None = None,
) -> Draft:
    """The draft of one picture; without a finder it has no objects. Raises the decoder's errors.

    The networks see the decoded *working copy*, not the upload: what is stored can then be encoded again, by other
    weights, to the same bits.
    """
    pixels = await decoder.decode(body)
    copy = working_copy(pixels)
    stored = replace(pixels, rgb_HWC=read_working_copy(copy))
    encoded = await encoder.encode(stored, mirrored=False)
    assert encoded.cells_VNF is not None
    objects = None if finder is None else await finder.objects(stored)
    return Draft(
        image_id=image_id,
        name=name,
        sha256=pixels.sha256,
        width=pixels.width,
        height=pixels.height,
        embedding_D=encoded.embedding_VD[0],
        cells_NF=encoded.cells_VNF[0],
        pixels=copy,
        weights=encoded.weights,
        job=job,
        source=name,
        metadata=metadata,
        objects=objects,
        objects_weights=None if finder is None else finder.weights,
    )


def described_by(encoder: networks.Encoder, finder: ObjectFinder | None = None) -> Describe:
    """What these make of working copies: the bits that ingesting the picture anew would store."""

    def describe(copies: Sequence[bytes]) -> list[Described]:
        out: list[Described] = []
        pictures = [read_working_copy(copy) for copy in copies]
        for picture, encoded in zip(pictures, encoder.encode_batch(pictures, mirrored=False), strict=True):
            assert encoded.cells_VNF is not None
            objects = None if finder is None else finder.objects(picture)
            out.append((encoded.embedding_VD[0], encoded.cells_VNF[0], objects))
        return out

    return describe


def sources_of(
    given: str | Path | bytes | Iterable[str | Path | bytes],
    metadata: Metadata | Sequence[Metadata] | Mapping[str, Metadata] | None,
    image_id: str | None,
    settings: Settings,
) -> tuple[str, Iterator[Source]]:
    """The job's name and its sources: of a folder (recursive, sorted, hidden files left out), files or bytes.

    ``metadata``: for one picture a dict; for several a list in the same order; for a folder a mapping from the path
    relative to it. Raises ``NotFound`` for a path that is not there, ``BadRequest`` when the shapes do not fit.
    """
    bytes_max = settings.decode.image_bytes_max
    if isinstance(given, bytes):
        return "upload", iter([_source(given, "upload", bytes_max, image_id, _only(metadata))])
    if isinstance(given, str | Path):
        path = Path(given)
        if path.is_dir():
            if image_id is not None:
                raise BadRequest("image_id belongs to one picture, not to a folder", subject="image_id")
            return f"folder:{path.resolve()}", _folder(path, _by_name(metadata or {}), settings)
        return "files", iter([_source(path, path.name, bytes_max, image_id, _only(metadata))])
    if not isinstance(given, Iterable):
        raise BadRequest(f"ingest takes a folder, files or bytes, not {type(given).__name__}", subject="source")
    several = list(given)
    if image_id is not None and len(several) != 1:
        raise BadRequest("image_id belongs to one picture", subject="image_id")
    known = list(metadata) if isinstance(metadata, Sequence) else [{}] * len(several) if metadata is None else None
    if known is None or len(known) != len(several):
        raise BadRequest("metadata of several pictures is a list with one entry for each, in order", subject="metadata")
    return "files", (
        _source(item, item_name(item, index), bytes_max, image_id, known[index]) for index, item in enumerate(several)
    )


def item_name(item: str | Path | bytes, index: int) -> str:
    """What an item is called in reports when its caller gave no name."""
    return f"upload-{index}" if isinstance(item, bytes) else Path(item).name


def _only(metadata: object) -> Metadata:
    if metadata is None:
        return {}
    if isinstance(metadata, list) and len(metadata) == 1:
        metadata = metadata[0]
    if not isinstance(metadata, dict):
        raise BadRequest("metadata of one picture is a dict", subject="metadata")
    return metadata


def _source(item: str | Path | bytes, name: str, bytes_max: int, image_id: str | None, metadata: Metadata) -> Source:
    read = (lambda: item) if isinstance(item, bytes) else (lambda: read_bounded(Path(item), bytes_max))
    return Source(name=name, read=read, image_id=image_id, metadata=metadata)


def _by_name(metadata: object) -> Mapping[str, Metadata]:
    if not isinstance(metadata, Mapping):
        raise BadRequest("metadata of a folder is a mapping from relative path to metadata", subject="metadata")
    for name, known in metadata.items():
        if not isinstance(known, dict):
            raise BadRequest(f"the metadata of {name} is a dict, not {known!r}", subject="metadata")
    return metadata


def _folder(root: Path, metadata: Mapping[str, Metadata], settings: Settings) -> Iterator[Source]:
    for path in itertools.islice(walk(root), settings.ingest.folder_images_max):
        name = path.relative_to(root).as_posix()
        yield _source(path, name, settings.decode.image_bytes_max, None, metadata.get(name, {}))


def walk(root: Path) -> Iterator[Path]:
    """Regular files under ``root`` in sorted order, without hidden ones and without collections."""
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(
            name for name in subfolders if not name.startswith(".") and not is_collection(Path(folder, name))
        )
        for name in sorted(files):
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file():
                yield path


def is_collection(path: Path) -> bool:
    """True for a folder that holds a catalog."""
    return (path / "catalog.lance").is_dir()


def read_bounded(path: Path, bytes_max: int) -> bytes:
    """A file's bytes. Raises ``TooLarge`` before reading more than ``bytes_max``, ``NotFound`` when it is not there."""
    try:
        with path.open("rb") as file:
            body = file.read(bytes_max + 1)
    except OSError as error:
        raise NotFound(f"the file cannot be read: {error.strerror}", subject=str(path)) from error
    if len(body) > bytes_max:
        raise TooLarge(f"a picture may have {bytes_max} bytes (decode.image_bytes_max)", subject=str(path))
    return body


def ingest_sources(
    catalog: Catalog,
    sources: Iterator[Source],
    *,
    job: str,
    decoder: Decoder,
    encoder: Encoder,
    finder: Finder | None = None,
    settings: Settings,
    overwrite: bool = False,
    rejects_file: Path | None = None,
    rejects_more: bool = False,
    progress: Progress | None = None,
) -> IngestSummary:
    """Store all sources, a synced commit per batch; what is refused is listed and never stops the rest.

    Idempotent: bytes that are already there are duplicates, so an ingest that was cut off is completed by asking again.
    """
    started = time.monotonic()
    tally = _Tally(catalog.seq, settings.limits.batch_items_max, rejects_file, more=rejects_more)
    parts = _Parts(job=job, decoder=decoder, encoder=encoder, finder=finder)
    prepared = _prepare_all(catalog, sources, parts)
    try:
        for batch in _batches(prepared, settings.ingest.batch_images):
            drafts = [outcome for outcome in batch if isinstance(outcome, Draft)]
            result = catalog.commit(drafts, replace=overwrite) if drafts else IngestResult(seq=catalog.seq, items=())
            committed = iter(result.items)
            tally.add(result.seq, [next(committed) if isinstance(outcome, Draft) else outcome for outcome in batch])
            if progress is not None:
                progress(len(batch))
    finally:
        prepared.close()
        tally.close()
    return tally.summary(time.monotonic() - started)


class _Parts(TypedDict):
    """What makes a draft of a source."""

    job: str
    decoder: Decoder
    encoder: Encoder
    finder: Finder | None


def _prepare_all(
    catalog: Catalog, sources: Iterator[Source], parts: _Parts
) -> Generator[Draft | IngestItem, None, None]:
    """Outcomes in the order of the sources, worked on by all cores, a bounded number ahead of the committer."""
    cores = os.cpu_count() or 1

    def work(source: Source) -> Draft | IngestItem:
        return asyncio.run(_prepare_one(catalog, source, parts))

    with ThreadPoolExecutor(cores, thread_name_prefix="ingest") as executor:
        ahead: deque[Future[Draft | IngestItem]] = deque()
        try:
            for source in sources:
                ahead.append(executor.submit(work, source))
                if len(ahead) > 4 * cores:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


async def _prepare_one(catalog: Catalog, source: Source, parts: _Parts) -> Draft | IngestItem:
    try:
        body = source.read()
        there = catalog.find_sha256(hashlib.sha256(body).hexdigest())
        if there is not None and source.image_id in (None, there.image_id):
            return IngestItem(name=source.name, image_id=there.image_id, status="duplicate")
        return await prepare(body, name=source.name, image_id=source.image_id, metadata=source.metadata, **parts)
    except StemmaError as error:
        return rejected(source.name, source.image_id, error)


def rejected(name: str, image_id: str | None, error: StemmaError) -> IngestItem:
    """The item of a picture that was refused."""
    problem = Problem(code=error.code, detail=error.detail)
    return IngestItem(name=name, image_id=image_id, status="rejected", error=problem)


def _batches(outcomes: Iterable[Draft | IngestItem], size: int) -> Iterator[list[Draft | IngestItem]]:
    iterator = iter(outcomes)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


class _Tally:
    """Counts items, keeps the first of them, and writes every reject down."""

    def __init__(self, seq: int, items_max: int, rejects_file: Path | None, *, more: bool) -> None:
        self._seq = seq
        self._items_max = items_max
        self._items: list[IngestItem] = []
        self._counts: Counter[ItemStatus] = Counter()
        self._path = rejects_file
        self._file: TextIO | None = None
        if rejects_file is not None:
            self._file = rejects_file.open("a" if more else "w", encoding="utf-8")

    def add(self, seq: int, items: Sequence[IngestItem]) -> None:
        self._seq = max(self._seq, seq)
        self._counts.update(item.status for item in items)
        self._items.extend(items[: self._items_max - len(self._items)])
        if self._file is not None:
            for item in items:
                if item.error is not None:
                    line = {"name": item.name, "code": item.error.code, "detail": item.error.detail}
                    self._file.write(json.dumps(line, ensure_ascii=True) + "\n")
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def summary(self, seconds: float) -> IngestSummary:
        return IngestSummary(
            seq=self._seq,
            seen=self._counts.total(),
            stored=self._counts["stored"],
            duplicates=self._counts["duplicate"],
            replaced=self._counts["replaced"],
            rejected=self._counts["rejected"],
            seconds=round(seconds, 3),
            items=tuple(self._items),
            rejects_file=str(self._path) if self._path is not None else None,
        )
