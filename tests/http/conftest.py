"""The gateway in this process: a real catalog, partition and decoding children behind the ASGI app, and no Ray.

Encoder and comparator are stand-ins without networks (a picture's own patches), so that the contract is tested in
seconds; the real ones run in the live tests.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from serving.gateway import build_app
from serving.served import Served
from stemma.api import CollectionStatus, DeleteResult, ImageRecord, IngestResult
from stemma.catalog import Catalog, Draft
from stemma.config import Settings, load
from stemma.embedded import EmbeddedDecoder, EmbeddedShards, named_record
from stemma.flow import Encoded, Judged, Pairing, Pixels
from stemma.index.codec import Codec
from stemma.index.partition import Partition
from stemma.networks.weights import card, comparator_card
from stemma.query import Engine
from stemma.vision.decode import DecodePool

CARD = replace(card(), match_threshold=6.0)  # matches of the stand-in are weaker: strangers reach 4, copies 8
PROJECTION = np.random.default_rng(7).normal(size=(64, 32))


class PatchEncoder:
    """Grey 16 x 16 as the embedding, projected 8 x 8 patches as cells: alike for alike pictures, and instant."""

    async def encode(self, pixels: Pixels, *, mirrored: bool) -> Encoded:
        grey_HW = np.asarray(Image.fromarray(pixels.rgb_HWC).convert("L"), dtype=np.float64)
        views = [grey_HW, grey_HW[:, ::-1]] if mirrored else [grey_HW]
        return Encoded(
            embedding_VD=np.stack([_unit(_grid(view, 16).ravel(), CARD.embedding_scale) for view in views]),
            cells_VNF=np.stack([_cells(view) for view in views]),
            featureless=bool(grey_HW.std() < 1),
            weights=CARD.digest,
        )


def _grid(grey_HW: np.ndarray, side: int) -> np.ndarray:
    small = Image.fromarray(grey_HW.astype(np.uint8)).resize((side, side), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float64)


def _unit(vector: np.ndarray, scale: float) -> np.ndarray:
    centred = vector - vector.mean(axis=-1, keepdims=True)
    norm = np.linalg.norm(centred, axis=-1, keepdims=True)
    return np.clip(np.rint(scale * centred / np.maximum(norm, 1e-9)), -127, 127).astype(np.int8)


def _cells(grey_HW: np.ndarray) -> np.ndarray:
    patches = _grid(grey_HW, 112).reshape(14, 8, 14, 8).swapaxes(1, 2).reshape(196, 64)
    return _unit(patches @ PROJECTION, CARD.cells_scale)


class PatchComparator:
    """Lays the query over the original by resizing alone: where they differ much, it was changed. Instant."""

    async def compare(self, query: Pixels, pairings: Sequence[Pairing]) -> list[Judged]:
        return [self._judge(_small(Image.fromarray(query.rgb_HWC)), pairing) for pairing in pairings]

    def _judge(self, query_HW: np.ndarray, pairing: Pairing) -> Judged:
        original_HW = _small(Image.open(io.BytesIO(pairing.original)))
        heatmap_RC = (np.clip(abs(query_HW - original_HW) / 64, 0, 1)).astype(np.float32)
        changed = float((heatmap_RC > 0.5).mean())
        distinct = float(changed > 0.5)
        manipulated = (1 - distinct) * float(changed > 0.005)
        return Judged(
            benign=1 - distinct - manipulated,
            manipulated=manipulated,
            distinct=distinct,
            logits=(0.0, 0.0, 0.0),
            heatmap_RC=heatmap_RC,
            transform=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
            mirrored=False,
            correlation=1.0,
            grid_RC=heatmap_RC,
        )


def _small(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L").resize((56, 56), Image.Resampling.BOX), dtype=np.float64)


class PlainOriginals:
    """``Originals`` over a catalog that this process writes."""

    def __init__(self, name: str, catalog: Catalog, partition: Partition) -> None:
        self.name = name
        self.catalog = catalog
        self.partition = partition
        self.loaded = True

    async def ready(self) -> bool:
        return self.loaded

    async def commit(self, drafts: Sequence[Draft], *, replace: bool) -> IngestResult:
        return self.catalog.commit(drafts, replace=replace)

    async def delete(self, image_ids: Sequence[str]) -> DeleteResult:
        return self.catalog.delete(image_ids)

    async def seq(self) -> int:
        return self.catalog.seq

    async def find_sha256(self, sha256: str) -> ImageRecord | None:
        return self.catalog.find_sha256(sha256)

    async def record(self, image_id: str) -> ImageRecord:
        return named_record(self.catalog.record(image_id))

    async def pixels(self, image_id: str) -> bytes:
        return self.catalog.pixels(image_id)

    async def status(self) -> CollectionStatus:
        return CollectionStatus(
            name=self.name,
            images=len(self.catalog),
            seq=self.catalog.seq,
            weights=CARD.digest,
            columns=dict(self.catalog.columns),
        )


@dataclass
class House:
    """A gateway over some collections, asked like a server but without one."""

    served: dict[str, Served]
    app: Any
    settings: Settings
    runner: asyncio.Runner = field(default_factory=asyncio.Runner)
    encoder: Any = None

    def ask(self, method: str, url: str, **kwargs: Any) -> httpx.Response:
        """One request, answered."""
        return self.runner.run(self.asked(method, url, **kwargs))

    async def asked(self, method: str, url: str, **kwargs: Any) -> httpx.Response:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://stemma") as client:
            request = client.build_request(method, url, **kwargs)
            await request.aread()  # so that a failure can show what was sent
            return await client.send(request)

    def raw(self, messages: Sequence[dict[str, Any]] | AsyncIterator[dict[str, Any]], **scope: Any) -> httpx.Response:
        """One request given as ASGI messages, for what no well-behaved client would send."""
        return self.runner.run(self._raw(messages, scope))

    async def _raw(self, messages: Any, scope: dict[str, Any]) -> httpx.Response:
        pending = iter(messages) if isinstance(messages, Sequence) else None
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            if pending is None:
                return await anext(messages)
            return next(pending, {"type": "http.disconnect"})

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        path = scope.pop("path", "/v1/search")
        base = {"type": "http", "http_version": "1.1", "method": "POST", "path": path, "raw_path": path.encode()}
        defaults = {"query_string": b"", "headers": [], "scheme": "http", "server": ("stemma", 80)}
        await self.app({**base, **defaults, **scope}, receive, send)
        head, *parts = sent
        body = b"".join(part.get("body", b"") for part in parts)
        return httpx.Response(head["status"], headers=head["headers"], content=body)

    def ingest(self, *bodies: bytes, ids: Sequence[str] = (), **parameters: str) -> httpx.Response:
        files: list[Any] = [("file", (f"{at}.jpg", body)) for at, body in enumerate(bodies)]
        files += [("image_id", (None, image_id.encode())) for image_id in ids]
        return self.ask("POST", "/v1/images", files=files, params=parameters)


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    """A picture by seed: smooth blobs of colour, as an encoded file."""

    def render(seed: int = 0, *, side: int = 96, format: str = "JPEG", **save: Any) -> bytes:
        rng = np.random.default_rng(seed)
        coarse = rng.integers(0, 256, size=(7, 7, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        out = io.BytesIO()
        image.save(out, format, **save)
        return out.getvalue()

    return render


@pytest.fixture(scope="session")
def pool() -> Iterator[DecodePool]:
    with DecodePool(Settings().decode, children=2) as pool:
        yield pool


@pytest.fixture(scope="session")
def make_house(tmp_path_factory: pytest.TempPathFactory, pool: DecodePool) -> Iterator[Callable[..., House]]:
    """Builds a house of named, empty collections under some settings."""
    houses: list[House] = []

    def make(*names: str, overrides: Sequence[str] = ()) -> House:
        settings, root = load(overrides=overrides), tmp_path_factory.mktemp("house")
        served = {name: _served(root / name, name, pool, settings) for name in names or ("photos",)}
        houses.append(House(served, build_app(served, settings), settings))
        return houses[-1]

    yield make
    for house in houses:
        house.runner.close()


def _served(root: Path, name: str, pool: DecodePool, settings: Settings) -> Served:
    catalog = Catalog.create(str(root))
    partition = Partition(catalog, root, settings, scale=CARD.embedding_scale, codec=Codec.unquantized())
    engine = Engine(
        decoder=EmbeddedDecoder(pool),
        encoder=PatchEncoder(),
        comparator=PatchComparator(),
        shards=EmbeddedShards(catalog, partition, settings.limits),
        card=CARD,
        comparator_card=comparator_card(),
        settings=settings,
    )
    return Served(name=name, engine=engine, originals=PlainOriginals(name, catalog, partition))


@pytest.fixture
def house(make_house: Callable[..., House]) -> House:
    """A house of one empty collection."""
    return make_house()


@pytest.fixture(scope="session")
def old_house(make_house: Callable[..., House]) -> House:
    """One house for all tests that do not care what is in it."""
    return make_house()


@pytest.fixture(scope="session")
def problem() -> Callable[[httpx.Response], dict[str, Any]]:
    """A response as the problem document that it must be."""

    def read(response: httpx.Response) -> dict[str, Any]:
        assert response.headers["content-type"] == "application/problem+json", response.text
        document = json.loads(response.content)
        assert document["status"] == response.status_code
        assert document["request_id"] == response.headers["x-request-id"]
        assert document.keys() >= {"type", "title", "code", "detail", "instance"}
        assert "Traceback" not in response.text
        return document

    return read
