"""Further photographs: gathered from clones by their blobs, and none of them near to what is kept apart."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stemma.errors import NotFound
from training import data, gather, split


def photograph(seed: int, size: tuple[int, int] = (96, 64)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (6, 8, 3)).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)


def test_the_index_names_each_photograph_once_with_a_free_licence() -> None:
    found = gather.listed()
    assert len({one.file for one in found}) == len({one.blob for one in found}) == len(found) > 3_000
    assert all(one.licence.startswith(("CC BY", "CC0", "public domain")) for one in found)
    assert not any("NC" in one.licence or "ND" in one.licence for one in found)


@pytest.mark.skipif(shutil.which("git") is None, reason="clones are read by git")
def test_a_photograph_is_gathered_by_its_blob_wherever_it_lies_now(tmp_path: Path) -> None:
    clone, out = tmp_path / "owner" / "name", tmp_path / "out"
    clone.mkdir(parents=True)
    body = io.BytesIO()
    photograph(1, (1024, 512)).save(body, "PNG")

    def git(*words: str, text: bytes = b"") -> str:
        return subprocess.run(
            ["git", "-C", str(clone), *words], input=text, capture_output=True, check=True
        ).stdout.decode()

    git("init", "--bare", "--quiet")
    blob = git("hash-object", "-w", "--stdin", text=body.getvalue()).strip()

    def one(file: str, repository: str, blob: str) -> gather.Found:
        return gather.Found(file=file, source="drawn", licence="CC0", repository=repository, path="a.png", blob=blob)

    out.mkdir()
    wanted = (one("a.jpg", "owner/name", blob), one("b.jpg", "owner/name", "0" * 40), one("c.jpg", "owner/no", blob))
    assert [gather.gather(each, tmp_path, out) for each in wanted] == [True, False, False]
    assert [path.name for path in out.iterdir()] == ["a.jpg"]
    with Image.open(out / "a.jpg") as image:
        assert image.size == (512, 256)


def test_none_that_is_near_to_what_is_kept_apart_is_trained_on(tmp_path: Path) -> None:
    folder, photos, pairs = tmp_path / "further", tmp_path / "photos", tmp_path / "tamper" / "val" / "000"
    homes = [photos / "train" / split.load().calibrate[0], photos / "val" / "v.jpg", photos / "heldout" / "h.jpg"]
    homes.append(pairs / "tampered.jpg")
    for path in (folder, *(home.parent for home in homes)):
        path.mkdir(parents=True, exist_ok=True)
    for seed, home in enumerate(homes):
        photograph(seed).save(home)
        # recompressed, and mirrored
        photograph(seed).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / f"near{seed}.jpg", quality=40)
    for name in split.load().calibrate[1:]:
        photograph(0).save(photos / "train" / name)
    photograph(50).save(folder / "other.jpg")
    assert [Path(path).name for path in data.gathered_photographs(folder, tmp_path)] == ["other.jpg"]
    with pytest.raises(NotFound, match="no photographs"):
        data.gathered_photographs(photos, tmp_path)


def test_a_card_says_whose_photographs_were_given(tmp_path: Path) -> None:
    assert gather.told(None) == "" and gather.licences(None) == ()
    (tmp_path / gather.listed()[0].file).touch()
    assert gather.told(tmp_path) == ", and 1 further photographs (training/further.json)"
    assert gather.licences(tmp_path)[0].startswith("further photographs: CC BY")
    (tmp_path / "mine.jpg").touch()
    assert "a folder of one's own" in gather.told(tmp_path) and "CC BY" not in gather.licences(tmp_path)[0]
