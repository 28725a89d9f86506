"""The way of an image, with stand-ins for decoder, encoder and committer: sources, counts, rejects, order."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stemma.api import IngestItem, IngestResult
from stemma.catalog.catalog import Draft
from stemma.config import load
from stemma.errors import BadImage, BadRequest, NotFound, TooLarge
from stemma.flow import Encoded, Pixels
from stemma.ingest import ingest_sources, prepare, read_bounded, sources_of, walk
from stemma.vision.decode import read_working_copy

SMALL = load(overrides=["ingest.batch_images=3", "limits.batch_items_max=5", "decode.image_bytes_max=64"])


class FakeDecoder:
    """Bytes that start with ``bad`` cannot be decoded."""

    async def decode(self, body: bytes) -> Pixels:
        if body.startswith(b"bad"):
            raise BadImage("this is no picture")
        digest = hashlib.sha256(body).hexdigest()
        shade = np.full((32, 40, 3), body[0] if body else 0, np.uint8)
        return Pixels(rgb_HWC=shade, width=400, height=320, sha256=digest, format="PNG")


class FakeEncoder:
    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    async def encode(self, pixels: Pixels, *, mirrored: bool) -> Encoded:
        assert not mirrored
        self.seen.append(pixels.rgb_HWC)
        cells = np.zeros((1, 196, 32), np.int8)
        return Encoded(embedding_VD=np.zeros((1, 256), np.int8), cells_VNF=cells, featureless=False, weights="w")


class FakeCatalog:
    """A committer over a dict, with the identity rule for pictures without an id."""

    def __init__(self) -> None:
        self.seq = 0
        self.known: dict[str, str] = {}
        self.commits: list[int] = []

    def find_sha256(self, sha256: str) -> SimpleNamespace | None:
        return SimpleNamespace(image_id=self.known[sha256]) if sha256 in self.known else None

    def commit(self, drafts: Sequence[Draft], *, replace: bool) -> IngestResult:
        self.seq += 1
        self.commits.append(len(drafts))
        items = []
        for draft in drafts:
            there = draft.sha256 in self.known
            image_id = self.known.setdefault(draft.sha256, draft.image_id or draft.sha256)
            items.append(IngestItem(name=draft.name, image_id=image_id, status="duplicate" if there else "stored"))
        return IngestResult(seq=self.seq, items=tuple(items))


def run(catalog: FakeCatalog, given_: Any, rejects: Path | None = None) -> Any:
    job, sources = sources_of(given_, None, None, SMALL)
    parts: dict[str, Any] = {"decoder": FakeDecoder(), "encoder": FakeEncoder(), "settings": SMALL}
    return ingest_sources(catalog, sources, job=job, rejects_file=rejects, **parts)  # type: ignore[arg-type]


bodies = st.lists(st.sampled_from([b"a", b"b", b"c", b"dd", b"bad", b"bad 2", b"x" * 65]), max_size=12)


@given(bodies)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_counts_add_up_and_every_reject_is_written_down(tmp_path: Path, pictures: list[bytes]) -> None:
    for old in tmp_path.glob("*"):
        old.unlink()
    for number, body in enumerate(pictures):
        (tmp_path / f"{number:03}.jpg").write_bytes(body)
    rejects = tmp_path.parent / "rejects.jsonl"
    catalog = FakeCatalog()
    summary = run(catalog, tmp_path, rejects)
    good = {body for body in pictures if not body.startswith(b"bad") and len(body) <= 64}
    assert summary.seen == len(pictures) == summary.stored + summary.duplicates + summary.rejected
    assert summary.stored == len(good) == len(catalog.known)
    lines = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert len(lines) == summary.rejected
    assert {line["code"] for line in lines} <= {"bad_image", "too_large"}
    assert all(line["detail"] and line["name"].endswith(".jpg") for line in lines)
    again = run(catalog, tmp_path, rejects)
    assert (again.stored, again.duplicates, again.rejected) == (0, len(pictures) - summary.rejected, summary.rejected)


def test_items_come_in_the_order_of_the_sources_and_are_bounded() -> None:
    summary = run(FakeCatalog(), [b"1", b"bad", b"2", b"1", b"3", b"4", b"5"])
    assert [item.name for item in summary.items] == [f"upload-{n}" for n in range(SMALL.limits.batch_items_max)]
    assert [item.status for item in summary.items] == ["stored", "rejected", "stored", "duplicate", "stored"]
    assert summary.seen == 7


def test_good_pictures_share_commits_of_a_bounded_size() -> None:
    catalog = FakeCatalog()
    run(catalog, [bytes([n]) for n in range(1, 11)])
    assert catalog.commits == [3, 3, 3, 1]


async def _prepared(encoder: FakeEncoder) -> Draft:
    parts: dict[str, Any] = {"metadata": {}, "job": "j", "decoder": FakeDecoder(), "encoder": encoder}
    return await prepare(b"picture", name="p", image_id=None, **parts)


def test_the_networks_see_what_is_stored() -> None:
    import asyncio

    encoder = FakeEncoder()
    draft = asyncio.run(_prepared(encoder))
    np.testing.assert_array_equal(encoder.seen[0], read_working_copy(draft.pixels))
    assert (draft.width, draft.height) == (400, 320)


def test_a_folder_is_walked_in_order_without_hidden_files_and_collections(tmp_path: Path) -> None:
    for name in ("b/2.jpg", "a.jpg", "b/1.png", ".hidden", ".git/x", "c.stemma/catalog.lance/data/x", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    os.symlink(tmp_path, tmp_path / "b" / "loop")
    os.mkfifo(tmp_path / "pipe")
    names = [path.relative_to(tmp_path).as_posix() for path in walk(tmp_path)]
    assert names == ["a.jpg", "notes.txt", "b/1.png", "b/2.jpg"]


def test_metadata_goes_to_the_picture_it_belongs_to(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    _, sources = sources_of(tmp_path, {"b.jpg": {"year": 1999}}, None, SMALL)
    assert [source.metadata for source in sources] == [{}, {"year": 1999}]
    _, sources = sources_of([b"1", b"2"], [{"n": 1}, {"n": 2}], None, SMALL)
    assert [source.metadata for source in sources] == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize(
    ("source", "metadata", "image_id"),
    [
        ([b"1", b"2"], [{"n": 1}], None),
        ([b"1", b"2"], {"n": 1}, None),
        (b"1", [{"n": 1}, {"n": 2}], None),
        (b"1", "text", None),
        ([b"1", b"2"], None, "one"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(source: Any, metadata: Any, image_id: str | None) -> None:
    with pytest.raises(BadRequest):
        sources_of(source, metadata, image_id, SMALL)


def test_a_file_is_never_read_beyond_its_limit(tmp_path: Path) -> None:
    big = tmp_path / "big.jpg"
    big.write_bytes(b"x" * 65)
    with pytest.raises(TooLarge):
        read_bounded(big, 64)
    assert len(read_bounded(big, 65)) == 65
    with pytest.raises(NotFound) as refusal:
        read_bounded(tmp_path / "none.jpg", 64)
    assert refusal.value.subject == str(tmp_path / "none.jpg")
