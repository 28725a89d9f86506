"""The embedded collection: ingest, search, delete, get, in one process with no Ray and no server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from pydantic import ValidationError

from stemma.api import Answer, Ask, Comparison, DeleteResult, ImageRecord, Metadata
from stemma.catalog.catalog import Catalog
from stemma.config import Settings, load
from stemma.embedded import (
    EmbeddedComparator,
    EmbeddedDecoder,
    EmbeddedEncoder,
    EmbeddedFinder,
    EmbeddedShards,
    named_record,
)
from stemma.errors import BadRequest, Conflict, NotFound
from stemma.finder import Finder, card_for, weights_for
from stemma.index.choice import codec_of, codec_wanted
from stemma.index.partition import Partition
from stemma.index.seal import maintain
from stemma.ingest import (
    REJECTS,
    IngestSummary,
    Progress,
    described_by,
    ingest_sources,
    is_collection,
    read_bounded,
    sources_of,
)
from stemma.networks.comparing import Comparator
from stemma.networks.encoder import Encoder
from stemma.networks.weights import Card, card
from stemma.query import Engine, Networks, answer
from stemma.query import compare as compare_pair
from stemma.vision.decode import DecodePool

T = TypeVar("T")


def open(url: str | Path, *, settings: Settings | None = None) -> Collection:
    """The collection at ``url`` (a folder). Nothing is created until the first ingest, nothing locked until a write.

    Raises ``BadRequest`` for a path that is a file. Reading a collection that is not there raises ``NotFound``.
    """
    return Collection(url, settings or load())


class Collection:
    """A named set of originals that answers where a picture comes from.

    Safe to use from several threads, one call at a time. Other processes may read it meanwhile; a second writer gets
    ``Conflict`` naming the first. Use it as a context manager, or call ``close``.
    """

    def __init__(self, url: str | Path, settings: Settings) -> None:
        if "://" in str(url):
            raise BadRequest("collections on object stores are not supported yet; give a folder", subject=str(url))
        if Path(url).is_file():
            raise BadRequest("a collection is a folder, this is a file", subject=str(url))
        self.url = str(url)
        self.settings = settings
        self._card: Card = card(settings.encoder.weights)
        self._lock = threading.RLock()
        self._catalog: Catalog | None = None
        self._writable = False
        self._partition: Partition | None = None
        self._encoder: Encoder | None = None
        self._comparator: Comparator | None = None
        self._finder: EmbeddedFinder | None = None
        self._pool: DecodePool | None = None
        self._runner: asyncio.Runner | None = None

    # ------------------------------------------------------------------ asking

    def search(self, image: bytes | str | Path, ask: Ask | None = None, **parameters: Any) -> Answer:
        """Where a picture comes from; ``image`` is its bytes or a path, ``parameters`` are the fields of ``Ask``.

        Raises ``BadImage``, ``UnsupportedType``, ``TooLarge``, ``BadRequest``, ``DeadlineExceeded``, and ``NotFound``
        when there is no collection here.
        """
        if ask is not None and parameters:
            raise BadRequest("give an Ask or its fields, not both", subject="ask")
        body = self._body(image)
        with self._lock:
            return self._run(answer(body, ask or _ask(parameters), self._engine()))

    def compare(
        self,
        query: bytes | str | Path,
        original: bytes | str | Path | None = None,
        *,
        original_id: str | None = None,
        deadline_ms: float | None = None,
    ) -> Comparison:
        """What was changed in ``query`` against one original: a picture's bytes or path, or a stored one's id.

        Needs no collection unless ``original_id`` names one of its images. Raises as ``search``, and ``NotFound`` for
        an id that is not there.
        """
        if (original is None) == (original_id is None):
            raise BadRequest("give an original or the id of a stored one", subject="original")
        body = self._body(query)
        other = self._body(original) if original is not None else original_id
        assert other is not None
        with self._lock:
            shards = self._shards() if isinstance(other, str) else None
            return self._run(compare_pair(body, other, self._comparing(), shards, deadline_ms=deadline_ms))

    def _body(self, image: bytes | str | Path) -> bytes:
        if not isinstance(image, bytes | str | Path):
            raise BadRequest(f"a picture is its bytes or a path, not {type(image).__name__}", subject="image")
        return image if isinstance(image, bytes) else read_bounded(Path(image), self.settings.decode.image_bytes_max)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        self._runner = self._runner or asyncio.Runner()
        return self._runner.run(work)

    def get(self, image_id: str, *, as_of: int | None = None) -> ImageRecord:
        """What is known of one original. Raises ``NotFound``."""
        with self._lock:
            return named_record(self._read().record(image_id, as_of=as_of))

    def pixels(self, image_id: str) -> bytes:
        """The working copy of one original: JPEG, long side at most 512. Raises ``NotFound``."""
        with self._lock:
            return self._read().pixels(image_id)

    def __len__(self) -> int:
        with self._lock:
            return len(self._read())

    def __iter__(self) -> Iterator[ImageRecord]:
        """Live originals in the order they were stored, as of the moment iteration starts."""
        with self._lock:
            ids = list(self._read().ids())
        for image_id in ids:
            try:
                yield self.get(image_id)
            except NotFound:  # deleted since
                continue

    def __contains__(self, image_id: object) -> bool:
        try:
            return isinstance(image_id, str) and self.get(image_id) is not None
        except NotFound:
            return False

    @property
    def seq(self) -> int:
        """The number of the last commit."""
        with self._lock:
            return self._read().seq

    def status(self) -> dict[str, Any]:
        """Counts, versions and what opening repaired, for a person or a monitor."""
        with self._lock:
            catalog = self._read()
            partition = self._search()
            sealed = [unit for unit in partition.units if unit.kind == "segment"]
            return {
                "url": self.url,
                "images": len(catalog),
                "seq": catalog.seq,
                "weights": catalog.weights or self._card.digest,
                "codec": partition.codec.id,
                "segments": len(sealed),
                "rows_sealed": sum(unit.row_hi - unit.row_lo for unit in sealed),
                "columns": dict(catalog.columns),
                "notes": list(catalog.notes),
            }

    # ----------------------------------------------------------------- changing

    def ingest(
        self,
        source: str | Path | bytes | Iterable[str | Path | bytes],
        *,
        metadata: Metadata | Sequence[Metadata] | Mapping[str, Metadata] | None = None,
        image_id: str | None = None,
        replace: bool = False,
        rejects_more: bool = False,
        progress: Progress | None = None,
    ) -> IngestSummary:
        """Store a folder, files or bytes; returns after the synced commit. Creates the collection where there is none.

        Without ``image_id`` a picture is called by the hex SHA-256 of its bytes. The same bytes twice are a duplicate;
        the same id with other bytes is refused unless ``replace``. Bad pictures are items with a reason, and lines of
        ``rejects.jsonl`` in the collection, never an exception; ``rejects_more`` adds to that file instead of beginning
        it anew. Raises ``Conflict`` while another process writes or when the collection was made with other weights.
        """
        job, sources = sources_of(source, metadata, image_id, self.settings)
        with self._lock:
            catalog, finder = self._write(create=True), self._objects() if self.settings.objects.ingest else None
            if finder is not None:
                finder.networks()  # broken weights are no picture's fault, and would be told of each
            summary = ingest_sources(
                catalog,
                sources,
                job=job,
                decoder=EmbeddedDecoder(self._decoders()),
                encoder=EmbeddedEncoder(self._networks()),
                finder=finder,
                settings=self.settings,
                overwrite=replace,
                rejects_file=None if job == "upload" else Path(self.url, REJECTS),
                rejects_more=rejects_more,
                progress=progress,
            )
            self._maintain()
            return summary

    def delete(self, image_ids: str | Iterable[str]) -> DeleteResult:
        """Forget originals; honoured by the very next search. Ids that are not there are listed as missing."""
        ids = [image_ids] if isinstance(image_ids, str) else list(image_ids)
        with self._lock:
            return self._write().delete(ids)

    def reencode(self, *, progress: Progress | None = None) -> int:
        """Move every original over to the weights of these settings, from its working copy; returns how many.

        The collection is the old one until all are done, and after a crash. Nothing happens where the weights are these
        already, those of the objects too, and no image lacks objects. History ends: no search as of an earlier version.
        Raises ``Conflict`` while another process writes.
        """
        with self._lock:
            catalog, encoder = self._write(), self._networks()
            finder = self._objects() if self.settings.objects.ingest else None
            right = finder is None or (catalog.objects_weights == finder.weights and not catalog.lacks_objects())
            if catalog.weights is None or (catalog.weights == encoder.weights and right):
                return 0
            describe = described_by(encoder, None if finder is None else finder.networks())
            objects_weights = None if finder is None else finder.weights
            told = progress or (lambda _: None)
            moved = catalog.reencode(encoder.weights, describe, told, objects_weights=objects_weights)
            self._maintain()
            return moved

    def close(self) -> None:
        """Release the lock, the decoding children and the files."""
        with self._lock:
            for held in (self._runner, self._pool, self._catalog):
                if held is not None:
                    held.close()
            self._runner = self._pool = self._catalog = self._partition = None
            self._writable = False

    def __enter__(self) -> Collection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------ opened on demand

    def _read(self) -> Catalog:
        if self._catalog is None:
            if not is_collection(Path(self.url)):
                raise NotFound("there is no collection here; `stemma ingest` creates one", subject=self.url)
            self._catalog = Catalog.open(self.url)
        self._catalog.refresh()
        return self._catalog

    def _write(self, *, create: bool = False) -> Catalog:
        if self._catalog is not None and self._writable:
            return self._catalog
        if self._catalog is not None:
            self._catalog.close()
            self._catalog = self._partition = None
        if create and not is_collection(Path(self.url)):
            self._catalog = Catalog.create(self.url)
        elif is_collection(Path(self.url)):
            self._catalog = Catalog.open(self.url, write=True)
        else:
            raise NotFound("there is no collection here; `stemma ingest` creates one", subject=self.url)
        self._writable = True
        return self._catalog

    def _search(self) -> Partition:
        catalog = self._read()
        if self._partition is None:
            codec = codec_of(self.settings, Path(self.url), len(catalog))
            self._partition = Partition(
                catalog, Path(self.url), self.settings, scale=self._card.embedding_scale, codec=codec
            )
        self._partition.refresh()
        return self._partition

    def _maintain(self) -> None:
        catalog = self._read()
        if catalog.fragments > self.settings.ingest.fragments_max:
            catalog.compact()
        codec = codec_wanted(self.settings, Path(self.url), len(catalog))
        maintain(catalog, Path(self.url), codec, self.settings, verify=self._partition is None)
        self._partition = None  # the next search opens the new segments, under the codec that fits the new size

    def _networks(self) -> Encoder:
        self._encoder = self._encoder or Encoder.load(self.settings.encoder)
        return self._encoder

    def _objects(self) -> EmbeddedFinder | None:
        """What finds objects, not loaded yet; None where the weights bring none."""
        objects, encoder = self.settings.objects, self.settings.encoder.weights
        if self._finder is None:
            card, made_by = card_for(objects, encoder), weights_for(objects, encoder)
            if card is not None and made_by is not None:
                self._finder = EmbeddedFinder(card, made_by, lambda: Finder.load(objects, encoder))
        return self._finder

    def _decoders(self) -> DecodePool:
        self._pool = self._pool or DecodePool(self.settings.decode)
        return self._pool

    def _shards(self) -> EmbeddedShards:
        catalog = self._read()
        if catalog.weights not in (None, self._card.digest):
            raise Conflict(
                f"made by weights {catalog.weights}, asked with {self._card.digest}: give encoder.weights, or move it "
                "over with stemma ingest --reencode",
                subject=self.url,
            )
        return EmbeddedShards(catalog, self._search(), self.settings.limits)

    def _engine(self) -> Engine:
        shards = self._shards()
        return Engine.over(self._comparing(), shards, self._objects())

    def _comparing(self) -> Networks:
        comparator = self._comparator = self._comparator or Comparator.load(self.settings.comparator)
        return Networks(
            decoder=EmbeddedDecoder(self._decoders()),
            encoder=EmbeddedEncoder(self._networks()),
            comparator=EmbeddedComparator(comparator),
            card=self._card,
            comparator_card=comparator.card,
            settings=self.settings,
        )


def _ask(parameters: dict[str, Any]) -> Ask:
    known = Ask.model_fields
    for name in parameters:
        if name not in known:
            raise BadRequest(f"search takes {', '.join(known)}; not {name!r}", subject=name)
    try:
        return Ask(**parameters)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise BadRequest(f"{name}: {first['msg']}, not {first['input']!r}", subject=name) from error
