"""The demo's collection: what is in it, that it is always the same, and that nothing in it resembles anything else."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from evaluation import pictures as pictures_room
from evaluation.pictures import DISTRACTORS, PHOTOGRAPHS, SEED, SIDES_PX, STRANGERS, Photograph, jpeg, render
from evaluation.scenes import SCENES
from stemma.errors import NotFound

HASH_BITS = 63


def dct_hash(rgb_HWC: np.ndarray) -> np.ndarray:
    """63 bits: signs of the low frequencies against their median (data/README calls 12 of 63 a near-duplicate)."""
    grey = cv2.resize(cv2.cvtColor(rgb_HWC, cv2.COLOR_RGB2GRAY), (32, 32), interpolation=cv2.INTER_AREA)
    low = cv2.dct(grey.astype(np.float32))[:8, :8].ravel()[1:]
    return low > np.median(low)


@pytest.fixture(scope="module")
def rendered() -> list[np.ndarray]:
    """Two of each kind."""
    return [render(SEED, number) for number in range(2 * len(SCENES))]


def test_there_are_enough_of_them() -> None:
    assert DISTRACTORS >= 500
    assert DISTRACTORS + len(PHOTOGRAPHS) >= 515


def test_photographs_are_carried_by_the_packages_and_open(rendered: list[np.ndarray]) -> None:
    files = [each.file for each in (*PHOTOGRAPHS, *STRANGERS)]
    assert len(set(files)) == len(files)
    assert "motorcycle_right.png" not in files
    for each in (*PHOTOGRAPHS, *STRANGERS):
        with Image.open(each.path()) as picture:
            assert min(picture.size) >= 32
        assert each.credit


def test_a_photograph_that_is_not_carried_says_how_to_get_it() -> None:
    with pytest.raises(NotFound, match=r"stemma\[demo\]"):
        Photograph(package="skimage", file="no_such.png", credit="-").path()


def test_rendering_repeats_to_the_bit_and_depends_on_seed_and_number() -> None:
    digests = {
        hashlib.sha256(jpeg(render(*key))).hexdigest() for key in ((SEED, 3), (SEED, 4), (SEED + 1, 3), (SEED, 3))
    }
    assert len(digests) == 3


def test_rendered_pictures_have_the_size_and_the_spread_of_photographs(rendered: list[np.ndarray]) -> None:
    for rgb_HWC in rendered:
        assert rgb_HWC.dtype == np.uint8
        assert SIDES_PX[0] <= max(rgb_HWC.shape[:2]) <= SIDES_PX[1]
        assert rgb_HWC.std() > 8  # none is blank


def test_spectra_fall_as_those_of_photographs_do(rendered: list[np.ndarray]) -> None:
    # Amplitude of natural images goes with 1 / f**slope, slope about 1; white noise has 0, a blur over 2.
    slopes = []
    for rgb_HWC in rendered:
        grey = cv2.resize(rgb_HWC.mean(2), (256, 256), interpolation=cv2.INTER_AREA)
        amplitude = np.abs(np.fft.fft2((grey - grey.mean()) * np.outer(np.hanning(256), np.hanning(256))))
        frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256)))
        inside = (frequency > 0.02) & (frequency < 0.3)
        slopes.append(-np.polyfit(np.log(frequency[inside]), np.log(amplitude[inside] + 1e-3), 1)[0])
    assert 0.7 < np.median(slopes) < 1.7


def test_no_two_resemble_each_other_not_even_mirrored(rendered: list[np.ndarray]) -> None:
    photographs = []
    for each in (*PHOTOGRAPHS, *STRANGERS):
        with Image.open(each.path()) as picture:
            photographs.append(np.asarray(picture.convert("RGB")))
    pictures = rendered + photographs
    hashes = np.stack([dct_hash(rgb_HWC) for rgb_HWC in pictures])
    mirrored = np.stack([dct_hash(np.ascontiguousarray(rgb_HWC[:, ::-1])) for rgb_HWC in pictures])
    apart = np.minimum((hashes[:, None] != hashes[None]).sum(-1), (hashes[:, None] != mirrored[None]).sum(-1))
    np.fill_diagonal(apart, HASH_BITS)
    assert apart.min() > 6


def test_jpeg_keeps_colours(rendered: list[np.ndarray]) -> None:
    back = np.asarray(Image.open(io.BytesIO(jpeg(rendered[0]))).convert("RGB"))
    assert np.abs(back.astype(int) - rendered[0]).mean() < 4


def test_the_folder_is_completed_and_cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures_room, "DISTRACTORS", 4)
    folder = pictures_room.write_collection(tmp_path / "originals")
    first = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name.startswith("rendered")}
    assert len(first) == 4 and len(list(folder.iterdir())) == 4 + len(PHOTOGRAPHS)
    (folder / "left-over.jpg").write_bytes(b"x")
    (folder / "rendered-0002-cells.jpg").unlink()
    pictures_room.write_collection(folder)
    names = {path.name for path in folder.iterdir()}
    assert names == set(first) | {each.file for each in PHOTOGRAPHS}
    assert (folder / "rendered-0000-mountains.jpg").stat().st_mtime_ns == first["rendered-0000-mountains.jpg"]
