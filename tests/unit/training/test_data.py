"""Training data: samples are numbered and pure, shared by workers without a difference, and survive corrupt files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training import data, split
from training.data import Feed, PairData, Photographs
from training.pairs import PairSettings

SETTINGS = PairSettings(side_px=64, aligned=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photographs")
    for seed in range(5):
        rng = np.random.default_rng(seed)
        small = rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)
        cv2.imwrite(str(path / f"{seed}.jpg"), cv2.resize(small, (128, 96), interpolation=cv2.INTER_CUBIC))
    return path


@pytest.fixture
def photographs(folder: Path) -> Photographs:
    return Photographs(folder, [f"{seed}.jpg" for seed in range(5)])


def test_a_corrupt_file_is_skipped_counted_and_named(folder: Path, tmp_path: Path) -> None:
    for name in ("0.jpg", "2.jpg"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "1.jpg").write_bytes(b"\xff\xd8 no picture")
    cv2.imwrite(str(tmp_path / "3.jpg"), np.zeros((8, 8, 3), np.uint8))
    found = Photographs(tmp_path, ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg"])
    good = Photographs(tmp_path, ["0.jpg", "2.jpg"])
    assert np.array_equal(found[1], good[1]) and np.array_equal(found[3], good[0])
    assert np.array_equal(found[4], good[0])
    assert set(found.skipped) == {"1.jpg", "3.jpg", "4.jpg"} and "missing" in found.skipped["4.jpg"]
    with pytest.raises(ValueError, match="none of 1"):
        Photographs(tmp_path, ["1.jpg"])[0]


def test_training_and_validation_never_meet(tmp_path: Path) -> None:
    lists = split.load()
    assert len(lists.train) == 501 and not set(lists.train) & set(lists.calibrate)
    train = data.training_photographs(tmp_path)
    assert train._names == lists.train
    assert len(data.validation_photographs(tmp_path)) == 0


@given(step=st.integers(0, 10_000), world=st.sampled_from([1, 2, 4, 8]), share=st.integers(1, 8))
def test_workers_share_the_same_global_batch(step: int, world: int, share: int) -> None:
    batch = world * share
    parts = [data.numbers(step, batch=batch, rank=rank, world=world) for rank in range(world)]
    assert sorted(n for part in parts for n in part) == list(range(step * batch, (step + 1) * batch))
    assert parts[0] == [data.number(step * share + i, rank=0, world=world) for i in range(share)]


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be shared"):
        data.numbers(0, batch=7, rank=0, world=2)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        data.number(0, rank=2, world=2)


def same(a: data.Batch, b: data.Batch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_sample_is_a_function_of_seed_and_number(photographs: Photographs) -> None:
    source = PairData(photographs, SETTINGS, seed=3)
    first = source.sample(7)
    source.sample(8)
    again = PairData(photographs, SETTINGS, seed=3).sample(7)
    assert np.array_equal(first.query_HWC, again.query_HWC) and first.log == again.log
    other = PairData(photographs, SETTINGS, seed=4).sample(7)
    assert not np.array_equal(first.query_HWC, other.query_HWC)


def test_an_epoch_visits_every_photograph_once(photographs: Photographs) -> None:
    source = PairData(photographs, SETTINGS, seed=5)
    seen = [source.sample(n).original_HWC.tobytes() for n in range(10)]
    assert len(set(seen[:5])) == 5 and set(seen[:5]) == set(seen[5:])


def test_a_feed_that_starts_late_gives_what_it_would_have_given(photographs: Photographs) -> None:
    source = PairData(photographs, SETTINGS, seed=6)
    early, late = iter(Feed(source, batch=2)), iter(Feed(source, batch=2, step=2))
    batches = [next(early) for _ in range(4)]
    assert same(batches[2], next(late)) and same(batches[3], next(late))


def test_batches_are_what_the_comparator_takes(photographs: Photographs) -> None:
    source = PairData(photographs, SETTINGS, seed=7)
    batch = next(iter(Feed(source, batch=3)))
    assert batch.query_B3HW.shape == (3, 3, 64, 64) and batch.mask_B1HW.shape == (3, 1, 64, 64)
    assert batch.label_B.shape == (3,) and batch.label_B.dtype == torch.long
    assert float(batch.original_B3HW.max()) > 1 and float(batch.valid_B1HW.max()) == 1.0
    pair = source.sample(0)
    assert torch.equal(batch.query_B3HW[0], torch.from_numpy(pair.query_HWC).permute(2, 0, 1).float())
    assert torch.equal(batch.mask_B1HW[0, 0], torch.from_numpy(pair.mask_HW).float() / 255)


@pytest.mark.slow
def test_processes_render_the_same_batches(photographs: Photographs) -> None:
    source = PairData(photographs, SETTINGS, seed=8)
    alone, feed = iter(Feed(source, batch=2)), Feed(source, batch=2, processes=1)
    try:
        ahead = iter(feed)
        for _ in range(2):
            assert same(next(alone), next(ahead))
    finally:
        feed.close()
