"""Ranks by objects against loops, composites of made photographs, and PIR on a miniature of PS-Battles."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation import composites, pir
from evaluation.object_ranks import COUNTS, Shelf, first, place
from evaluation.tables import tables
from stemma.api import Answer, Ask, Donor
from stemma.errors import BadRequest, NotFound
from training.ps_battles import COLUMNS
from training.splices import CutOut

MakeAnswer = Callable[..., Answer]
DIM = 8


@given(st.integers(0, 10_000), st.sampled_from([1, 2, 16]))
def test_distances_are_the_smallest_over_all_pairs_of_the_first_objects(seed: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    objects = [rng.integers(-127, 128, (n, DIM)).astype(np.int8) for n in rng.integers(1, 5, 6)]
    query_VOD = rng.integers(-127, 128, (2, 3, DIM)).astype(np.int8)
    shelf = Shelf.of("abcdef", objects, most)
    by_hand = []
    for each in objects:
        kept = [*each[:-1][:most], each[-1]]
        by_hand.append(-max(int(q.astype(int) @ d.astype(int)) for view in query_VOD for q in view for d in kept))
    distance_I = shelf.distances(query_VOD)
    assert distance_I.tolist() == by_hand
    order = [name for _, name in sorted(zip(by_hand, "abcdef", strict=True))]
    assert [shelf.rank(distance_I, name) for name in order] == [1, 2, 3, 4, 5, 6]


def test_ties_go_by_id_and_what_is_taken_out_counts_for_nobody() -> None:
    near_I = np.array([0.5, 0.5, 0.1], np.float32)
    assert [place("abc", near_I, each) for each in "cab"] == [1, 2, 3]
    assert place("abc", near_I, "b", ["c", "a"]) == 1


def test_the_whole_picture_is_kept_whatever_the_number() -> None:
    objects = np.arange(5)[:, None].astype(np.int8)
    assert first(objects, 2).ravel().tolist() == [0, 1, 4] and first(objects, 16).ravel().tolist() == [0, 1, 2, 3, 4]


def test_an_image_takes_32_bytes_for_each_object_that_it_has() -> None:
    objects = [np.zeros((each, 4), np.int8) for each in (9, 3, 1)]
    assert [Shelf.of("abc", objects, most).code_bytes_per_image for most in (8, 1)] == [139, 53]


# Composites


def ranks(donor: int | None, host: int | None, without: int | None) -> composites.Ranks:
    return composites.Ranks(donor=donor, host=host, without_host=without)


def test_either_is_the_better_of_the_two() -> None:
    told = composites.recalls([ranks(2, 1, 1), ranks(11, 12, 10), ranks(None, None, None), ranks(1, None, 1)])
    assert (told["donor"]["R@1"]["share"], told["donor"]["R@10"]["share"]) == (0.25, 0.5)
    assert (told["host"]["R@1"]["share"], told["host"]["R@10"]["share"]) == (0.25, 0.25)
    assert (told["either"]["R@1"]["share"], told["either"]["R@10"]["share"]) == (0.5, 0.5)
    assert told["donor_without_host"]["R@10"]["share"] == 0.75 and told["n"] == 4


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photographs of one colour each with a bright square, annotated; calibration ones are c0 and c1."""
    parts = {"train": ["t0.jpg", "t1.jpg", "c0.jpg", "c1.jpg"], "val": ["v0.jpg"], "heldout": ["h0.jpg", "h1.jpg"]}
    images, notes = [], []
    for part, names in parts.items():
        (tmp_path / "photos" / part).mkdir(parents=True)
        for name in names:
            shade = 20 * len(images)
            rgb = np.full((120, 160, 3), shade, np.uint8)
            rgb[30:90, 40:120] = 255 - shade
            cv2.imwrite(str(tmp_path / "photos" / part / name), rgb)
            images.append({"id": len(images), "file_name": name, "split": part, "width": 160, "height": 120})
            box = {"bbox": [40, 30, 80, 60], "segmentation": [[40, 30, 120, 30, 120, 90, 40, 90]]}
            notes.append({"image_id": images[-1]["id"], **box})
    (tmp_path / "photos/instances.json").write_text(json.dumps({"images": images, "annotations": notes}))
    listed = composites.split.Split(train=("t0.jpg", "t1.jpg"), calibrate=("c0.jpg", "c1.jpg"))
    monkeypatch.setattr(composites.split, "load", lambda: listed)
    return tmp_path


def test_composites_are_of_the_parts_own_photographs_and_the_same_again(data: Path) -> None:
    books = composites.library(data)
    assert set(books.names) == {"t0.jpg", "t1.jpg", "c0.jpg", "c1.jpg", "v0.jpg", "h0.jpg", "h1.jpg"}
    assert books.training == 2 and set(books.names[:2]) == {"t0.jpg", "t1.jpg"}
    for part, names in (("calibrate", {"c0.jpg", "c1.jpg", "v0.jpg"}), ("heldout", {"h0.jpg", "h1.jpg"})):
        hosts = composites.part_names(data, part)  # type: ignore[arg-type]
        assert set(hosts) == names
        cuts = composites.splices.cut_outs(data, names)
        made, again = (composites.compose(books, cuts, hosts) for _ in range(2))
        assert {each.donor for each in made} == names and len(made) == len(names)
        assert all(each.host in names and each.host != each.donor for each in made)
        assert all(np.array_equal(one.rgb_HWC, other.rgb_HWC) for one, other in zip(made, again, strict=True))
    assert len(composites.compose(books, cuts, hosts, most=1)) == 1


def shade(rgb_HWC: np.ndarray) -> np.ndarray:
    """An embedding of the mean colour, on a half circle: equal colours are nearest."""
    angle = float(rgb_HWC.mean()) / 255 * np.pi
    return np.array([[100 * np.cos(angle), 100 * np.sin(angle)]]).astype(np.int8)


def test_every_row_of_the_protocol_is_told(data: Path, make_answer: MakeAnswer) -> None:
    seen: list[int] = []

    @contextmanager
    def searching(files: Sequence[Path]) -> Iterator[Callable[[bytes, Ask], Answer]]:
        seen.append(len(files))
        donor_id = hashlib.sha256((data / "photos/heldout/h0.jpg").read_bytes()).hexdigest()
        box = (0.0, 0.0, 1.0, 1.0)
        found = Donor(image_id=donor_id, query_box=box, donor_box=box, distance=0.1, probability=0.2, shown=False)
        yield lambda body, ask: make_answer([donor_id], donors=[found, found.model_copy(update={"clone": True})])

    result = composites.splice_protocol(
        data,
        part="heldout",
        map_of=lambda rgb_HWC: rgb_HWC[::40, ::40].transpose(2, 0, 1).astype(np.float32),
        stored=shade,
        asked=lambda rgb_HWC: shade(rgb_HWC)[None],
        searching=searching,
    )
    told = result["splice"]
    assert (told["part"], told["images"], told["composites"], seen) == ("heldout", 7, 2, [7])
    assert set(told["by_method"]) == {"SPoC", "MAC", "R-MAC", "GeM", "objects", "joint"}
    assert [each["objects"] for each in told["by_objects"]] == list(COUNTS)
    # the answers always name h0: once it is the donor, once the host
    joint = told["by_method"]["joint"]
    assert joint["donor"]["R@1"]["share"] == joint["host"]["R@1"]["share"] == 0.5
    assert joint["either"]["R@1"]["share"] == 1.0
    written = tables(result)
    assert "| GeM |" in written and "| 16 |" in written
    json.dumps(result, allow_nan=False)


def test_a_cut_out_never_goes_into_its_own_photograph(data: Path) -> None:
    books = composites.library(data)
    cut = CutOut(name="h0.jpg", split="heldout", box=(40, 30, 120, 90), polygons=((40, 30, 120, 30, 120, 90, 40, 90),))
    (made,) = composites.compose(books, [cut], ["h0.jpg", "h1.jpg"])
    assert (made.donor, made.host) == ("h0.jpg", "h1.jpg")


# PIR


@pytest.fixture
def miniature(tmp_path: Path) -> Path:
    """Four originals of different greys, with one to three variants that are a little brighter; one file is missing."""
    rows: dict[str, list[dict[str, object]]] = {"originals": [], "photoshops": []}
    for group in range(4):
        for number in range(-1, 1 + group % 3):
            kind, name = ("originals", f"g{group}") if number < 0 else ("photoshops", f"g{group}v{number}")
            folder = tmp_path / (kind if number < 0 else f"{kind}/g{group}")
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{name}.png"
            cv2.imwrite(str(path), np.full((40, 50, 3), 10 + 60 * group + 2 * (number + 1), np.uint8))
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            rows[kind].append({"id": name, "original": f"g{group}", "end": "png", "hash": digest})
    (tmp_path / "photoshops/g2/g2v0.png").unlink()
    for kind, entries in rows.items():
        lines = ["\t".join(COLUMNS[kind])]
        lines += ["\t".join(str(entry.get(column, "0")) for column in COLUMNS[kind]) for entry in entries]
        (tmp_path / f"{kind}.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_variants_find_the_original_of_their_group(miniature: Path) -> None:
    result = pir.pir(miniature, shade, lambda rgb_HWC: shade(rgb_HWC)[None])
    told = result["pir"]
    assert (told["originals"], told["queries"], told["skipped"]) == (4, 6, 1)
    assert [each["objects"] for each in told["by_objects"]] == list(COUNTS)
    for each in told["by_objects"]:
        assert each["R@1"]["share"] == each["R@100"]["share"] == 1.0 and each["n"] == 6
    assert "| 16 | 1.000" in tables(result)
    few = pir.pir(miniature, shade, lambda rgb_HWC: shade(255 - rgb_HWC)[None], queries_max=2)
    assert few["pir"]["queries"] == 2 and few["pir"]["by_objects"][0]["R@1"]["share"] < 1.0


def test_a_folder_in_another_layout_is_refused(tmp_path: Path, miniature: Path) -> None:
    with pytest.raises(NotFound, match="tsv"):
        pir.pir(tmp_path / "none", shade, shade)
    for path in (miniature / "originals").glob("*.png"):
        path.unlink()
    with pytest.raises(BadRequest, match="no original"):
        pir.pir(miniature, shade, shade)
