"""PS-Battles in its real layout, in miniature: what cannot be used is named, the filter keeps a share, groups stay."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stemma.errors import Corrupt, NotFound
from stemma.vision.geometry import Picture
from training import ps_battles
from training.ps_battles import COLUMNS, Counts, Entry, Pair, PsBattles

GROUPS, VARIANTS = 6, 4


def _file(path: Path, level: int, mark: int = 0) -> str:
    """A flat picture of ``level`` with a corner of ``mark`` more; -> SHA-256 of the file."""
    rgb = np.full((40, 48, 3), level, np.uint8)
    rgb[:20, :20] += np.uint8(mark)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), rgb)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _row(id: str, end: str, sha256: str, original: str | None = None) -> str:
    head = [id] if original is None else [id, original]
    return "\t".join([*head, "http://127.0.0.1/x", end, sha256, "9", "1", "user01", "link", "1347854437", "48", "40"])


def _write(folder: Path, name: str, rows: Sequence[str]) -> None:
    (folder / f"{name}.tsv").write_text("\n".join(["\t".join(COLUMNS[name]), *rows]) + "\n", encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six originals with four variants each; variant v of group g differs by 10 (v + 1) steps in a quarter."""
    originals, photoshops = [], []
    for g in range(GROUPS):
        end = ("jpg", "png")[g % 2]
        sha256 = _file(tmp_path / f"originals/g{g}.{end}", 20 * g + 10)
        originals.append(_row(f"g{g}", end, sha256))
        for v in range(VARIANTS):
            sha256 = _file(tmp_path / f"photoshops/g{g}/c{g}{v}.png", 20 * g + 10, 10 * (v + 1))
            photoshops.append(_row(f"c{g}{v}", "png", sha256, f"g{g}"))
    _write(tmp_path, "originals", originals)
    _write(tmp_path, "photoshops", photoshops)
    return tmp_path


def mean_levels(pictures: Sequence[Picture]) -> NDArray[np.float32]:
    return np.stack([one[:20, :20].mean((0, 1)) for one in pictures]).astype(np.float32)


def test_groups_are_read_in_order_with_their_pictures(folder: Path) -> None:
    data = PsBattles.open(folder)
    assert ps_battles.count(data.pairs) == Counts(GROUPS, GROUPS * VARIANTS)
    assert [pair.variant.id for pair in data.pairs[:5]] == ["c00", "c01", "c02", "c03", "c10"]
    assert all(pair.variant.group == pair.original.id for pair in data.pairs)
    picture = data.read(data.pairs[7].variant)
    assert picture is not None and picture.shape == (40, 48, 3)
    assert (picture[0, 0] == 30 + 40).all() and (picture[-1, -1] == 30).all()
    assert data.skipped == {}


def test_colours_are_red_green_blue(folder: Path) -> None:
    path = folder / "originals/red.png"
    assert cv2.imwrite(str(path), np.full((40, 40, 3), (0, 0, 250), np.uint8))
    entry = Entry(id="red", group="red", file="originals/red.png", sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    picture = PsBattles.open(folder).read(entry)
    assert picture is not None and picture[5, 5].tolist() == [250, 0, 0]


def test_what_is_missing_or_corrupt_is_skipped_counted_and_named(folder: Path) -> None:
    (folder / "photoshops/g1/c10.png").unlink()
    (folder / "photoshops/g1/c11.png").write_bytes(b"")
    (folder / "photoshops/g1/c12.png").write_bytes(b"removed by its owner")
    (folder / "originals/g2.jpg").unlink()
    data = PsBattles.open(folder)
    distances = ps_battles.measure(data, mean_levels)
    assert set(distances) == {f"c{g}{v}" for g in range(GROUPS) for v in range(VARIANTS) if g != 2} - {
        "c10",
        "c11",
        "c12",
    }
    assert data.skipped == {
        "photoshops/g1/c10.png": "missing or empty",
        "photoshops/g1/c11.png": "missing or empty",
        "photoshops/g1/c12.png": "other bytes than the list names (SHA-256)",
        "originals/g2.jpg": "missing or empty",
    }
    said = ps_battles.table(data, ps_battles.near(data.pairs, distances, 1e9))
    assert "skipped 3, missing or empty; first" in said and "photoshops/g1/c12.png" in said


def test_a_file_that_is_no_picture_is_named_though_its_hash_is_right(folder: Path) -> None:
    for name, body in (("text", b"no picture"), ("tiny", None)):
        path = folder / f"originals/{name}.png"
        if body is None:
            assert cv2.imwrite(str(path), np.zeros((8, 100, 3), np.uint8))
        else:
            path.write_bytes(body)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        data = PsBattles.open(folder)
        assert data.read(Entry(id=name, group=name, file=f"originals/{name}.png", sha256=sha256)) is None
        assert data.skipped == {f"originals/{name}.png": "not a picture of 32 px or more"}


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (_row("../../etc", "png", "0" * 64, "g0"), "an id that is no file name"),
        (_row("c", "png", "0" * 64, "../g0"), "an id that is no file name"),
        (_row("c", "gif", "0" * 64, "g0"), "neither jpg nor png, or no SHA-256"),
        (_row("c", "png", "nothing", "g0"), "neither jpg nor png, or no SHA-256"),
        (_row("c00", "png", "0" * 64, "g0"), "an id that was listed before"),
        ("c\tg0\tpng", "not as many fields as columns"),
    ],
)
def test_a_row_that_cannot_be_meant_is_named_by_its_line(folder: Path, row: str, why: str) -> None:
    with (folder / "photoshops.tsv").open("a", encoding="utf-8") as file:
        file.write(row + "\n")
    data = PsBattles.open(folder)
    assert data.skipped == {f"photoshops.tsv:{GROUPS * VARIANTS + 2}": why}
    assert len(data.pairs) == GROUPS * VARIANTS


def test_a_variant_without_original_or_without_change_is_no_pair(folder: Path) -> None:
    sha256 = PsBattles.open(folder).pairs[0].original.sha256
    with (folder / "photoshops.tsv").open("a", encoding="utf-8") as file:
        file.write(_row("same", "png", sha256, "g0") + "\n" + _row("lone", "png", "1" * 64, "gone") + "\n")
    data = PsBattles.open(folder)
    assert data.skipped == {
        "photoshops/g0/same.png": "the same bytes as its original",
        "photoshops/gone/lone.png": "its original is not in the list",
    }


def test_lists_that_are_missing_or_others_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "photoshops.tsv").write_text("id\toriginal\n", encoding="utf-8")
    with pytest.raises(Corrupt, match="columns"):
        PsBattles.open(folder)
    with pytest.raises(NotFound):
        PsBattles.open(tmp_path / "nowhere")


def test_the_filter_keeps_what_is_near_and_only_that(folder: Path) -> None:
    data = PsBattles.open(folder)
    distances = ps_battles.measure(data, mean_levels)
    # JPEG originals of one level are exact, so a variant's distance is its step times the root of three channels.
    assert distances["c02"] == pytest.approx(30 * 3**0.5, abs=0.1)
    beta = ps_battles.calibrate(distances, share=0.5)
    kept = ps_battles.near(data.pairs, distances, beta)
    assert {pair.variant.id[-1] for pair in kept} == {"0", "1"} and len(kept) == GROUPS * 2
    assert ps_battles.near(data.pairs, distances, min(distances.values())) == [], "smaller than beta, not equal to it"
    assert ps_battles.near(data.pairs, {}, 1e9) == [], "what was not measured is not kept"


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.integers(0, 10**6), min_size=1, max_size=60, unique=True),
    share=st.floats(0, 1),
)
def test_beta_keeps_the_share_asked_for_to_the_nearest_pair(values: list[int], share: float) -> None:
    distances = {str(i): value / 1000 for i, value in enumerate(values)}
    beta = ps_battles.calibrate(distances, share=share)
    assert sum(value < beta for value in distances.values()) == round(share * len(values))


def test_a_share_of_nothing_has_no_beta() -> None:
    for distances, share in (({}, 0.5), ({"a": 1.0}, 1.5)):
        with pytest.raises(ValueError, match="cut at a share"):
            ps_battles.calibrate(distances, share=share)


def _pairs(groups: int, variants: Callable[[int], int]) -> list[Pair]:
    out = []
    for g in range(groups):
        original = Entry(id=f"g{g}", group=f"g{g}", file="", sha256=hashlib.sha256(str(g).encode()).hexdigest())
        out += [
            Pair(original, Entry(id=f"g{g}v{v}", group=f"g{g}", file="", sha256="0" * 64)) for v in range(variants(g))
        ]
    return out


def test_the_split_is_by_group_in_the_published_shares() -> None:
    pairs = _pairs(7_171, lambda g: 1 + g % 5)
    sides = ps_battles.divide(pairs)
    train, test = ({pair.original.id for pair in sides[side]} for side in ("train", "test"))
    assert not train & test and len(sides["train"]) + len(sides["test"]) == len(pairs)
    # 807 expected of a draw: within four standard deviations
    assert abs(len(test) - ps_battles.PAPER_TEST.originals) < 4 * (7_171 * 0.1125 * 0.8875) ** 0.5


def test_neither_the_filter_nor_missing_files_move_a_group() -> None:
    pairs = _pairs(300, lambda _: 2)
    whole, part = ps_battles.divide(pairs), ps_battles.divide(pairs[1::3])
    for side in ("train", "test"):
        assert set(part[side]) <= set(whole[side])
    # the same photograph posted twice is on one side
    for first in {pair.original for pair in pairs}:
        again = Entry(id="reposted", group="reposted", file="other", sha256=first.sha256)
        assert ps_battles.side(again) == ps_battles.side(first)


def test_the_published_counts_add_up_and_stand_beside_ours(folder: Path) -> None:
    train, test, kept = ps_battles.PAPER_TRAIN, ps_battles.PAPER_TEST, ps_battles.PAPER_KEPT
    assert tuple(a + b for a, b in zip(train, test, strict=True)) == kept
    assert round(ps_battles.KEPT_SHARE, 4) == 0.2658
    data = PsBattles.open(folder)
    said = ps_battles.table(data, data.pairs)
    for published in ("11,142 / 90,886", "7,171 / 24,157", "6,364 / 21,197", "807 / 2,960"):
        assert published in said
    assert f"{GROUPS:>12,}{GROUPS * VARIANTS:>12,}" in said


@pytest.mark.parametrize("layer", ["pooled", "map"])
def test_features_are_those_of_torchvisions_network(
    layer: ps_battles.Layer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision

    class Small(torch.nn.Module):
        """As ResNet50 ends: a body, a pool, a classifier."""

        def __init__(self) -> None:
            super().__init__()
            self.body = torch.nn.Conv2d(3, 4, 32, 32)
            self.pool, self.fc = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Linear(4, 10)

    monkeypatch.setattr(torchvision.models, "resnet50", lambda weights: Small())
    torch.manual_seed(0)
    net = Small()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    pictures = [np.full((60, 90, 3), level, np.uint8) for level in (0, 200)]
    out = ps_battles.resnet50(tmp_path / "net.pth", layer)(pictures)
    assert out.shape == (2, 4 if layer == "pooled" else 4 * 49) and out.dtype == np.float32
    white = (200 / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    want = (net.body.weight.sum((2, 3)) @ white + net.body.bias).detach().numpy()
    assert np.allclose(out[1] if layer == "pooled" else out[1].reshape(4, 49).mean(1), want, atol=1e-3)
    torch.save({"body.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(Corrupt, match="resnet50"):
        ps_battles.resnet50(tmp_path / "other.pth", layer)


def test_the_command_prints_the_counts(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ps_battles, "resnet50", lambda path, layer: mean_levels)
    for extra, kept in (([], 24), (["--weights", "x", "--beta", "20"], 6), (["--weights", "x"], 6)):
        monkeypatch.setattr("sys.argv", ["ps_battles", "--data", str(folder), *extra])
        assert ps_battles.main() == 0
        said = capsys.readouterr().out
        assert f"kept {'':3}{GROUPS:>12,}{kept:>12,}" in said, said
        assert ("beta" in said) == bool(extra)
