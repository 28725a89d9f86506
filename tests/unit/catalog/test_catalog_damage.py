"""Flipped bytes: fsck names them or a read refuses them; what is read is never other data than was stored."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest

from stemma.catalog.catalog import Catalog
from stemma.catalog.encoding import READABLE, RowMismatch, decode, physical
from stemma.catalog.fsck import fsck
from stemma.catalog.schema import Draft
from stemma.errors import Corrupt, NotFound, StemmaError
from stemma.flow import Objects

MakeDraft = Callable[..., Draft]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, draft: MakeDraft) -> Path:
    """A small collection with a bit of everything."""
    root = tmp_path_factory.mktemp("sound") / "photos.stemma"
    box_O4 = np.array([[0, 0, 0.5, 0.5], [0, 0, 1, 1]], np.float32)
    two = Objects(box_O4=box_O4, score_O=np.full(2, 0.5, np.float32), embedding_OD=np.ones((2, 256), np.int8))
    with Catalog.create(str(root)) as catalog:
        catalog.commit([draft(n, f"id{n}", metadata={"year": n, "tags": ["x"]}, objects=two) for n in range(3)])
        catalog.commit([draft(n, f"id{n}", metadata={"year": n}) for n in range(3, 6)])
        catalog.commit([draft("other", "id1")], replace=True)
        catalog.delete(["id0"])
    assert fsck(root).ok
    return root


def everything(url: Path) -> list[Any]:
    """All that a reader can get, as plain values."""
    catalog = Catalog.open(str(url))
    snapshot = catalog.snapshot()
    values = catalog.read(snapshot.row_R, READABLE)
    values["objects"] = [
        (one.box_O4.tolist(), one.score_O.tolist(), one.embedding_OD.tolist()) for one in values["objects"]
    ]
    plain = [value.tolist() if isinstance(value, np.ndarray) else value for value in values.values()]
    return [plain, list(catalog.ids()), snapshot.deleted_R.tolist(), catalog.seq, catalog.columns]


def test_a_flipped_byte_is_refused_or_changes_nothing_and_fsck_finds_it(sound: Path, tmp_path: Path) -> None:
    whole = everything(sound)
    rng = random.Random(3)
    files = [p for p in sorted(sound.rglob("*")) if p.is_file() and p.suffix in {".lance", ".manifest", ".txn", ".log"}]
    assert {path.suffix for path in files} == {".lance", ".manifest", ".txn", ".log"}
    url = tmp_path / "photos.stemma"
    shutil.copytree(sound, url)
    refused = 0
    for path in files:
        broken = url / path.relative_to(sound)
        body = path.read_bytes()
        for _ in range(5):
            at = rng.randrange(len(body))
            broken.write_bytes(body[:at] + bytes([body[at] ^ (1 << rng.randrange(8))]) + body[at + 1 :])
            try:
                assert everything(url) == whole, f"{path.name} byte {at}"
            except (Corrupt, NotFound):
                refused += 1
            assert not fsck(url, rows=False).ok, f"{path.name} byte {at} of {len(body)}"
        broken.write_bytes(body)
    assert refused > len(files)


def test_damage_that_ends_the_process_that_reads_it_is_reported(sound: Path, tmp_path: Path) -> None:
    """A NUL in a name inside a Lance footer aborts the reader (pylance 14.0.2); fsck outlives it and says so."""
    url = tmp_path / "photos.stemma"
    shutil.copytree(sound, url)
    path = next((url / "tombstones.lance" / "data").iterdir())
    path.write_bytes(path.read_bytes().replace(b"/lance.encodings.Col", b"/lance.enc\0dings.Col"))
    report = fsck(url)
    assert any(path.name in problem for problem in report.problems)
    assert any("ends the process" in problem for problem in report.problems)


def test_a_missing_file_is_named(sound: Path, tmp_path: Path) -> None:
    url = tmp_path / "photos.stemma"
    shutil.copytree(sound, url)
    gone = next((url / "catalog.lance" / "data").iterdir())
    gone.unlink()
    assert any(gone.name in problem and "missing" in problem for problem in fsck(url).problems)
    with pytest.raises(StemmaError):
        everything(url)
    with pytest.raises(NotFound):
        fsck(tmp_path / "nowhere")


@pytest.mark.parametrize("column", [*physical(READABLE, {"year": "integer"})])
def test_every_column_is_under_a_checksum(sound: Path, column: str) -> None:
    """Whatever changes in a row, decoding it says which group, before any value is handed out."""
    catalog = Catalog.open(str(sound))
    table: pa.Table = lance.dataset(sound / "catalog.lance", version=catalog._state.now.catalog.version).to_table()
    values = table[column].to_pylist()
    at = 1
    old = values[at]
    values[at] = _other(old)
    field = table.schema.field(column)
    changed = table.set_column(table.schema.get_field_index(column), field, pa.array(values, field.type))
    with pytest.raises(RowMismatch) as caught:
        decode(changed, READABLE, {"year": "integer"}, "w1", "o1")
    assert caught.value.position == at
    decode(table, READABLE, {"year": "integer"}, "w1", "o1")


def _other(value: Any) -> Any:
    match value:
        case int():
            return value ^ 1
        case str():
            return value + "x"
        case bytes():
            return bytes([value[0] ^ 1]) + value[1:]
        case [{"embedding": embedding, **rest}, *more]:
            return [{"embedding": _other(embedding), **rest}, *more]
        case [int(first), *others]:
            return [first ^ 1, *others]
        case _:
            return [{"box": [0, 0, 1, 1], "score": 1, "embedding": [0] * 256}]


def test_rows_that_changed_places_and_other_weights_do_not_pass(sound: Path) -> None:
    table = lance.dataset(sound / "catalog.lance").to_table()
    for column in ("embedding", "pixels"):
        order = [1, 0, *range(2, len(table))]
        swapped = table.set_column(table.schema.get_field_index(column), column, table[column].take(order))
        both = swapped.set_column(
            swapped.schema.get_field_index(f"crc_{column}"), f"crc_{column}", table[f"crc_{column}"].take(order)
        )
        with pytest.raises(RowMismatch):
            decode(both, [column], {}, "w1")
        with pytest.raises(RowMismatch):
            decode(table, [column], {}, "w2")


def test_corrupt_names_the_row_and_its_image(sound: Path, tmp_path: Path, draft: MakeDraft) -> None:
    url = tmp_path / "photos.stemma"
    shutil.copytree(sound, url)
    pixels = draft(4).pixels
    for path in (url / "catalog.lance" / "data").iterdir():
        body = path.read_bytes()
        if pixels in body:
            at = body.index(pixels) + 7
            path.write_bytes(body[:at] + bytes([body[at] ^ 4]) + body[at + 1 :])
    catalog = Catalog.open(str(url))
    with pytest.raises(Corrupt, match=r"row 4 \(image_id 'id4'\): pixels") as caught:
        catalog.pixels("id4")
    assert caught.value.subject == "row 4, image_id 'id4'"
    assert catalog.pixels("id5") == draft(5).pixels
    assert len(catalog.read(catalog.rows_of(["id4"]), ["embedding", "metadata"])["metadata"]) == 1
    assert any("id4" in problem for problem in fsck(url).problems)
    with Catalog.open(str(url), write=True) as writer, pytest.raises(Corrupt, match="id4"):
        writer.compact()  # never carried into new files


def test_fsck_asks_the_other_rooms(sound: Path) -> None:
    report = fsck(sound, checks=[lambda root, catalog: [f"{root.name} {len(catalog)}"]])
    assert report.problems == [f"{sound.name} 5"] and not report.ok
    assert '"ok": false' in report.to_json() and "1 problems" in report.summary()
