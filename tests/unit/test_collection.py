"""The embedded collection on real networks, real codes and a real catalog, with small rendered pictures."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import stemma
from stemma.collection import Collection
from stemma.config import load
from stemma.errors import BadImage, BadRequest, Conflict, NotFound

COUNT = 8


def scene(seed: int) -> np.ndarray:
    """A picture with structure at several scales, unlike those of other seeds."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((240, 320, 3))
    for size in (4, 10, 24, 60):
        noise = rng.uniform(0, 255, (size * 3 // 4, size, 3)).astype(np.uint8)
        picture += np.asarray(Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC), float)
    for _ in range(12):
        x, y, w, h = rng.integers(0, 260), rng.integers(0, 190), rng.integers(10, 60), rng.integers(10, 50)
        picture[y : y + h, x : x + w] = rng.uniform(0, 1000, 3)
    return np.clip(picture / 4, 0, 255).astype(np.uint8)


def encode(picture: np.ndarray, form: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, form, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(COUNT):
        (folder / f"{seed}.png").write_bytes(encode(scene(seed)))
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def collection(photos: Path) -> Iterator[Collection]:
    with stemma.open(photos.parent / "c.stemma") as target:
        years = {f"{seed}.png": {"year": 1990 + seed} for seed in range(COUNT)}
        summary = target.ingest(photos, metadata=years)
        assert (summary.stored, summary.rejected) == (COUNT, 1)
        yield target


def test_the_same_bytes_are_identical(collection: Collection, photos: Path) -> None:
    answer = collection.search(photos / "3.png")
    assert answer.original is not None
    assert (answer.verdict, answer.original.metadata["name"]) == ("identical", "3.png")


@pytest.mark.parametrize("seed", range(3))
def test_a_recompressed_mirrored_crop_finds_its_original(collection: Collection, seed: int) -> None:
    changed = scene(seed)[12:, 16:][:, ::-1]
    answer = collection.search(encode(np.ascontiguousarray(changed), "JPEG", quality=60))
    assert answer.candidates[0].metadata["name"] == f"{seed}.png"
    assert answer.original is not None
    assert answer.verdict == "benign"
    assert answer.original.comparison is not None
    assert answer.original.comparison.mirrored
    assert answer.coverage.complete
    assert answer.used.exact


def test_a_stranger_is_unknown(collection: Collection) -> None:
    answer = collection.search(encode(scene(1000)), donors=0)  # its rectangles are in every scene
    assert (answer.verdict, answer.original) == ("unknown", None)
    assert len(answer.candidates) == COUNT


def test_a_filter_limits_what_is_searched_and_counted(collection: Collection, photos: Path) -> None:
    answer = collection.search(photos / "3.png", filter="year >= 1995")
    assert answer.verdict != "identical"
    assert answer.coverage.images_total == 3
    assert all(candidate.metadata["year"] >= 1995 for candidate in answer.candidates)
    with pytest.raises(BadRequest):
        collection.search(photos / "3.png", filter="nosuch = 1")


def test_it_reads_as_a_set_of_originals(collection: Collection) -> None:
    records = list(collection)
    assert len(records) == len(collection) == COUNT
    record = records[0]
    assert collection.get(record.image_id) == record
    assert record.image_id in collection
    assert "none" not in collection
    assert (record.width, record.height) == (320, 240)
    assert Image.open(io.BytesIO(collection.pixels(record.image_id))).size == (320, 240)
    with pytest.raises(NotFound):
        collection.get("none")


def test_what_is_no_picture_is_refused_by_its_code(collection: Collection) -> None:
    with pytest.raises(BadImage):
        collection.search(encode(scene(0), "JPEG")[:2000])
    with pytest.raises(BadRequest, match="kk"):
        collection.search(encode(scene(0)), kk=3)


def test_a_delete_is_honoured_by_the_next_search_and_the_past_stays(tmp_path: Path) -> None:
    with stemma.open(tmp_path / "c.stemma") as collection:
        stored = collection.ingest(encode(scene(1)), image_id="one")
        collection.ingest(encode(scene(2)), image_id="two")
        changed = encode(scene(1), "JPEG", quality=70)
        assert collection.search(changed).candidates[0].image_id == "one"
        gone = collection.delete(["one", "none"])
        assert (gone.deleted, gone.missing) == (("one",), ("none",))
        assert [c.image_id for c in collection.search(changed).candidates] == ["two"]
        before = collection.search(changed, as_of=stored.seq + 1)
        assert before.candidates[0].image_id == "one"
        assert len(collection) == 1
        assert collection.ingest(encode(scene(1)), image_id="one").stored == 1
        assert collection.search(encode(scene(1))).verdict == "identical"


def test_one_writer_many_readers(tmp_path: Path) -> None:
    url = tmp_path / "c.stemma"
    with stemma.open(url) as writer, stemma.open(url) as reader:
        with pytest.raises(NotFound):
            len(reader)
        writer.ingest(encode(scene(1)), image_id="one")
        assert len(reader) == 1
        with pytest.raises(Conflict):
            reader.delete("one")
        writer.ingest(encode(scene(2)), image_id="two")
        assert reader.search(encode(scene(2))).verdict == "identical"


def test_answers_survive_closing_and_the_loss_of_what_is_derived(tmp_path: Path) -> None:
    url = tmp_path / "c.stemma"
    settings = load(overrides=["search.tail_rows_max=2", "search.tail_block_rows=1"])
    with stemma.open(url, settings=settings) as collection:
        for seed in range(6):
            collection.ingest(encode(scene(seed)), image_id=str(seed))
        assert collection.status()["segments"] > 0
        before = collection.search(encode(scene(4), "JPEG", quality=50))
    for file in sorted((url / "segments").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    with stemma.open(url, settings=settings) as collection:
        after = collection.search(encode(scene(4), "JPEG", quality=50))
        assert after.candidates == before.candidates
        assert after.coverage.complete


def test_the_command_prints_one_answer_a_line(
    collection: Collection, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from stemma.cli import main

    queries = [str(photos / "0.png"), str(photos / "1.png")]
    assert main(["search", *queries, "--collection", collection.url, "--json"]) == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [line["query"] for line in lines] == queries
    assert all(line["verdict"] == "identical" for line in lines)


def test_a_plain_folder_is_ingested_beside_itself(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from stemma.cli import main

    (tmp_path / "pictures").mkdir()
    for seed in range(2):
        (tmp_path / "pictures" / f"{seed}.png").write_bytes(encode(scene(seed)))
    query = tmp_path / "query.jpg"
    query.write_bytes(encode(scene(1), "JPEG", quality=60))
    assert main(["search", str(query), "--collection", str(tmp_path / "pictures"), "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["original"]["metadata"]["name"] == "1.png"
    assert (tmp_path / "pictures.stemma" / "catalog.lance").is_dir()
    query.write_bytes(encode(scene(77)))
    assert main(["search", str(query), "--collection", str(tmp_path / "pictures.stemma")]) == 1
    assert main(["search", str(tmp_path / "none.jpg"), "--collection", str(tmp_path / "pictures.stemma")]) == 2
    assert main(["fsck", "--collection", str(tmp_path / "pictures.stemma"), "--json"]) == 0


def test_a_closed_collection_opens_again_by_itself(tmp_path: Path) -> None:
    collection = stemma.open(tmp_path / "c.stemma")
    collection.ingest(encode(scene(1)), image_id="one")
    collection.close()
    assert collection.search(encode(scene(1))).verdict == "identical"
    assert collection.delete("one").deleted == ("one",)
    collection.close()


@pytest.mark.parametrize("parameters", [{"k": "many"}, {"filter": 5}, {"as_of": 99}, {"deadline_ms": -1.0}])
def test_wrong_parameters_are_ours_to_refuse(collection: Collection, parameters: dict[str, Any]) -> None:
    with pytest.raises(BadRequest) as refusal:
        collection.search(encode(scene(0)), **parameters)
    assert refusal.value.subject == next(iter(parameters))


def test_wrong_types_and_places_are_ours_to_refuse(collection: Collection, photos: Path) -> None:
    wrong: Any = bytearray(b"picture")
    with pytest.raises(BadRequest):
        collection.search(wrong)
    wrong = 5
    with pytest.raises(BadRequest):
        collection.ingest(wrong)
    wrong = {"0.png": 5}
    with pytest.raises(BadRequest, match=r"0\.png"):
        collection.ingest(photos, metadata=wrong)
    with pytest.raises(BadRequest, match="object stores"):
        stemma.open("s3://bucket/photos")


def test_a_call_that_cannot_be_carried_out_says_so_and_leaves_nothing(
    collection: Collection, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from stemma.cli import main

    nowhere = tmp_path / "none.stemma"
    assert main(["ingest", str(tmp_path / "nothing"), "--collection", str(nowhere)]) == 2
    assert not nowhere.exists()
    query = str(photos / "0.png")
    assert main(["search", query, "--collection", collection.url, "--report", str(tmp_path / "no" / "x.html")]) == 2
    assert main(["search", query, query, "--collection", collection.url, "--k", "0"]) == 2
    assert main(["ingest", query, "--collection", "/proc/none.stemma"]) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    assert "k must be 1 to 100" in said.err


def test_rejects_of_all_paths_are_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from stemma.cli import main

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.txt").write_text("no picture")
    url = tmp_path / "c.stemma"
    assert main(["ingest", str(tmp_path / "a"), str(tmp_path / "b"), "--collection", str(url)]) == 0
    assert [json.loads(line)["name"] for line in (url / "rejects.jsonl").read_text().splitlines()] == ["a.txt", "b.txt"]


def test_a_folder_whose_collection_is_being_written_is_searched_as_it_is(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from stemma.cli import main

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.png").write_bytes(encode(scene(1)))
    with stemma.open(tmp_path / "photos.stemma") as writer:
        writer.ingest(tmp_path / "photos")
        query = str(tmp_path / "photos" / "1.png")
        assert main(["search", query, "--collection", str(tmp_path / "photos"), "--json"]) == 0
    assert "as it is" in capfd.readouterr().err
