"""A collection moves to other weights: refused before, the same as one ingested anew afterwards."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import stemma
from stemma.catalog.catalog import Catalog
from stemma.commands import ingest as command
from stemma.config import Settings, load
from stemma.errors import Conflict, Corrupt
from stemma.networks import weights

COUNT = 4


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(COUNT):
        rng = np.random.default_rng(seed)
        rough = Image.fromarray(rng.integers(0, 256, (9, 12, 3)).astype(np.uint8))
        fine = rng.integers(0, 80, (96, 128, 3))
        picture = np.asarray(rough.resize((128, 96), Image.Resampling.BICUBIC), np.int64) // 2 + fine
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{seed}.png")
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The shipped network under another scale: other rows, another digest."""
    folder = tmp_path_factory.mktemp("weights")
    card, tensors = weights.read_tensors()
    scales = {"embedding_scale": card.embedding_scale * 0.9, "cells_scale": card.cells_scale}
    digest = weights.write_tensors(folder, tensors, **scales)
    weights.write_card(folder, dataclasses.replace(card, digest=digest, **scales))
    return load(None, [f"encoder.weights={folder}"])


def rows(folder: Path) -> dict[str, tuple[bytes, bytes]]:
    catalog = Catalog.open(str(folder))
    ids = sorted(catalog.ids())
    values = catalog.read(catalog.rows_of(ids), ["embedding", "cells"])
    vectors = zip(values["embedding"], values["cells"], strict=True)
    return {one: (e.tobytes(), c.tobytes()) for one, (e, c) in zip(ids, vectors, strict=True)}


def jpeg(path: Path) -> bytes:
    out = io.BytesIO()
    Image.open(path).save(out, "JPEG", quality=70)
    return out.getvalue()


def test_moved_is_as_ingested_anew(photos: Path, other: Settings, tmp_path: Path) -> None:
    query = jpeg(photos / "2.png")
    with stemma.open(tmp_path / "c") as old:
        old.ingest(photos)
        old.delete([next(iter(old)).image_id])
        before = rows(tmp_path / "c")
    with stemma.open(tmp_path / "c", settings=other) as target:
        with pytest.raises(Conflict, match="--reencode"):
            target.search(query)
        with pytest.raises(Conflict):
            target.ingest(photos)
        done: list[int] = []
        assert target.reencode(progress=done.append) == sum(done) == COUNT - 1
        moved = target.search(query)
        assert target.reencode() == 0, "asked again, there is nothing to do"
        assert target.ingest(photos).stored == 1
    with stemma.open(tmp_path / "fresh", settings=other) as fresh:
        fresh.ingest(photos)
        anew = fresh.search(query)
    assert rows(tmp_path / "c") == rows(tmp_path / "fresh")
    assert set(before) < set(rows(tmp_path / "c")) and all(rows(tmp_path / "c")[one] != before[one] for one in before)
    assert (moved.verdict, moved.original and moved.original.image_id) == (
        anew.verdict,
        anew.original and anew.original.image_id,
    )
    with stemma.open(tmp_path / "c") as old, pytest.raises(Conflict, match=r"encoder\.weights"):
        old.search(query)


def test_segments_of_the_old_rows_answer_no_more(photos: Path, other: Settings, tmp_path: Path) -> None:
    def sealing(settings: Settings) -> Settings:
        search = settings.search.model_copy(update={"tail_rows_max": 1, "tail_block_rows": 1})
        return settings.model_copy(update={"search": search})

    with stemma.open(tmp_path / "c", settings=sealing(load())) as old:
        old.ingest(photos)
        assert old.status()["segments"] > 0
    with stemma.open(tmp_path / "c", settings=sealing(other)) as target:
        target.reencode()
        for number in range(COUNT):
            answer = target.search(jpeg(photos / f"{number}.png"))
            assert answer.original is not None and answer.original.metadata["name"] == f"{number}.png"
            assert answer.coverage.complete and answer.coverage.images_total == COUNT


def test_objects_come_by_moving_and_stay(photos: Path, tmp_path: Path) -> None:
    blind = load(None, ["objects.ingest=false"])
    with stemma.open(tmp_path / "c", settings=blind) as old:
        old.ingest(photos)
        assert old.reencode() == 0
    before = rows(tmp_path / "c")
    assert objects(tmp_path / "c") == (None, {one: [] for one in before})
    with stemma.open(tmp_path / "c") as target:
        assert target.reencode() == COUNT and target.reencode() == 0
    with stemma.open(tmp_path / "fresh") as fresh:
        fresh.ingest(photos)
    assert objects(tmp_path / "c") == objects(tmp_path / "fresh") and rows(tmp_path / "c") == before
    made_by, found = objects(tmp_path / "c")
    assert made_by == weights.objects_digest(weights.objects_card(), weights.detector_card()) and all(found.values())
    with stemma.open(tmp_path / "c", settings=blind) as target:
        # the same encoder, and nobody to look for objects: those that are there are good
        assert target.reencode() == 0 and objects(tmp_path / "c")[0] == made_by


def test_one_image_without_objects_is_enough_to_move(photos: Path, tmp_path: Path) -> None:
    blind = load(None, ["objects.ingest=false"])
    with stemma.open(tmp_path / "c", settings=blind) as old:
        old.ingest([photos / "0.png", photos / "1.png"])
    with stemma.open(tmp_path / "c") as target:
        target.ingest(photos)
        assert target.reencode() == COUNT and target.reencode() == 0
        assert all(objects(tmp_path / "c")[1].values())
    with stemma.open(tmp_path / "c", settings=blind) as old:
        made = old.ingest(jpeg(photos / "0.png"))
        assert made.stored == 1 and made.items[0].image_id is not None
        old.delete(made.items[0].image_id)
    with stemma.open(tmp_path / "c") as target:
        assert target.reencode() == 0, "a deleted image needs none"


def test_weights_that_cannot_be_read_stop_an_ingest_instead_of_every_picture(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(weights.resolve(None), folder)
    (folder / weights.OBJECTS_FILE).write_bytes(b"torn")
    with stemma.open(tmp_path / "c", settings=load(None, [f"encoder.weights={folder}"])) as target:
        with pytest.raises(Corrupt, match=r"objects\.safetensors"):
            target.ingest(photos)
        assert len(target) == 0


def objects(folder: Path) -> tuple[str | None, dict[str, list[float]]]:
    """What made the objects, and all numbers of each image's."""
    catalog = Catalog.open(str(folder))
    ids = sorted(catalog.ids())
    found = catalog.read(catalog.rows_of(ids), ["objects"])["objects"]
    rows = [[*one.box_O4.ravel(), *one.score_O, *one.embedding_OD.ravel()] for one in found]
    return catalog.objects_weights, {name: [float(value) for value in row] for name, row in zip(ids, rows, strict=True)}


def test_the_command(photos: Path, other: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--collection", str(tmp_path / "c")]
    assert command([str(photos), *where]) == 0
    capsys.readouterr()
    chosen = ["--set", f"encoder.weights={other.encoder.weights}"]
    for expected in (COUNT, 0):
        assert command(["--reencode", *where, *chosen, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["moved"] == expected


@pytest.mark.parametrize("argv", [["--reencode"], ["--reencode", "PHOTOS", "--collection", "c"], ["--collection", "c"]])
def test_calls_that_cannot_be_meant(
    argv: list[str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command([str(photos) if one == "PHOTOS" else one for one in argv]) == 2
    assert not (tmp_path / "c").exists()
