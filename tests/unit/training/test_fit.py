"""The fits: principal directions, the steady metric, scales, and that views stand alone."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stemma.networks import weights as weights_files
from stemma.networks.backbones import lite0_keys
from stemma.networks.encoder import STARTER, EncoderNetwork
from training import fit, views


def test_principal_directions_are_those_of_the_covariance() -> None:
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(200, 8)) * np.arange(1, 9) + 5
    mean, components = fit.principal(rows, 3)
    values, vectors = np.linalg.eigh(np.cov(rows.T))
    assert np.allclose(mean, rows.mean(0))
    assert np.allclose(components @ components.T, np.eye(3))
    for direction, expected in zip(components, vectors[:, ::-1].T, strict=False):
        assert abs(direction @ expected) == pytest.approx(1, abs=1e-9)
        assert direction[np.abs(direction).argmax()] > 0
    assert values[-1] == pytest.approx(((rows - mean) @ components[0]).var(ddof=1))


def test_steady_components_leave_out_what_changes_move() -> None:
    """Two directions tell pictures apart equally; the one that changes disturb must come last."""
    rng = np.random.default_rng(4)
    clean = rng.normal(size=(300, 6)) * (3, 3, 0.1, 0.1, 0.1, 0.1)
    seen = clean[:, None] + rng.normal(size=(300, 10, 6)) * (2, 0.1, 0.1, 0.1, 0.1, 0.1)
    noise = fit.scatter(seen.astype(np.float32), clean)
    _, components = fit.steady_components(clean, noise, 2)
    assert abs(components[0, 1]) > 5 * abs(components[0, 0])
    # in the metric of the changes (with their floor) the components are orthonormal
    noise += fit.NOISE_FLOOR * np.trace(noise) / 6 * np.eye(6)
    assert np.allclose(components @ noise @ components.T, np.eye(2), atol=1e-4)


def test_without_noise_steady_components_are_principal_ones() -> None:
    """Where changes move every direction alike, the metric is the plain one, up to its unit."""
    rng = np.random.default_rng(5)
    clean = rng.normal(size=(400, 5)) * (5, 4, 3, 2, 1)
    pushes = np.concatenate([np.eye(5), -np.eye(5)]) * 0.3
    mean, steady = fit.steady_components(clean, fit.scatter((clean[:, None] + pushes).astype(np.float32), clean), 3)
    plain_mean, plain = fit.principal(clean, 3)
    assert np.allclose(mean, plain_mean)
    assert np.allclose(steady / np.linalg.norm(steady, axis=1, keepdims=True), plain, atol=1e-4)


@given(st.integers(1, 2**31), st.floats(0.05, 1))
def test_the_scale_clips_almost_nothing(seed: int, largest: float) -> None:
    unit = np.random.default_rng(seed).uniform(-largest, largest, 4000)
    scale = fit.int8_scale(unit)
    assert (np.abs(unit * scale) > 127.5 + 0.1 * scale * largest).sum() == 0
    assert scale * largest == pytest.approx(127, rel=0.02)


def test_every_tensor_of_the_trunk_has_a_public_name() -> None:
    with torch.device("meta"):
        trunk = EncoderNetwork(STARTER).trunk
    ours = [key for key, _ in lite0_keys()]
    theirs = [key for _, key in lite0_keys()]
    assert sorted(ours) == sorted(key for key in trunk.state_dict() if not key.endswith("num_batches_tracked"))
    assert len(set(theirs)) == len(theirs)


def test_the_command_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--data"):
        fit.main(["pca", "--data", str(tmp_path), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_codec_is_fitted_and_found(tmp_path: Path) -> None:
    """The command's way in small: 501 photographs stand in as noise, one view each."""
    source = weights_files.resolve(None)
    weights_files.write_card(tmp_path, weights_files.card())
    (tmp_path / weights_files.ENCODER_FILE).write_bytes((source / weights_files.ENCODER_FILE).read_bytes())
    features = np.random.default_rng(0).uniform(0, 2, (501, 1, 1280)).astype(np.float32)
    stored = tmp_path / "views.npz"
    views.Features(pooled_NPC=features, cell_noise_KK=np.eye(112)).save(stored)
    fit.fit_codec(tmp_path, tmp_path, stored)
    files = {path.name for path in weights_files.codec_folder("opq", tmp_path).iterdir()}
    assert files == {"codec.json", "index.faiss"}
    views.Features(pooled_NPC=features[:7], cell_noise_KK=np.eye(112)).save(stored)
    with pytest.raises(ValueError, match="501"):
        fit.fit_codec(tmp_path, tmp_path, stored)


def test_a_view_does_not_depend_on_the_others() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (90, 120, 3)).astype(np.uint8)
    second = views.render(picture, "a.jpg", 1)
    views.render(picture, "b.jpg", 0)
    assert np.array_equal(views.render(picture, "a.jpg", 1), second)
    shown = [views.render(picture, name, number) for name in ("a.jpg", "b.jpg") for number in range(2)]
    assert len({one.tobytes() for one in shown}) == 4


@given(st.integers(1, 1500), st.integers(1, 1500))
def test_working_size_is_never_larger(height: int, width: int) -> None:
    out = views.at_working_size(np.zeros((height, width, 3), np.uint8))
    assert max(out.shape[:2]) == min(max(height, width), views.WORKING_SIDE_PX)
    assert min(out.shape[:2]) >= 1


def test_photographs_come_as_rgb_and_a_missing_one_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "photos" / "train"
    folder.mkdir(parents=True)
    red = np.full((40, 40, 3), (250, 10, 10), np.uint8)
    cv2.imwrite(str(folder / "red.jpg"), red[..., ::-1])
    (one,) = views.photographs(tmp_path, ["red.jpg"])
    assert one[20, 20, 0] > 200 > 60 > one[20, 20, 2]
    with pytest.raises(ValueError, match=r"blue\.jpg"):
        list(views.photographs(tmp_path, ["blue.jpg"]))


def test_the_views_of_a_photograph_move_no_cell(tmp_path: Path) -> None:
    folder = tmp_path / "photos" / "train"
    folder.mkdir(parents=True)
    picture = np.random.default_rng(3).integers(0, 256, (12, 16, 3)).astype(np.uint8)
    cv2.imwrite(str(folder / "a.png"), cv2.resize(picture, (160, 120), interpolation=cv2.INTER_CUBIC))
    made = views.view_features(views.network(), tmp_path, ("a.png",), per=2, per_cells=1)
    assert made.pooled_NPC.shape == (1, 2, 1280) and not np.array_equal(*made.pooled_NPC[0])
    assert np.allclose(made.cell_noise_KK, made.cell_noise_KK.T) and np.trace(made.cell_noise_KK) > 0
    made.save(tmp_path / "views.npz")
    again = views.Features.load(tmp_path / "views.npz", 1)
    assert np.array_equal(again.pooled_NPC, made.pooled_NPC)
    assert np.array_equal(again.cell_noise_KK, made.cell_noise_KK)
    (shown,) = views.photographs(tmp_path, ["a.png"])
    small = cv2.resize(views.in_place(shown, "a.png", 0), (160, 120), interpolation=cv2.INTER_AREA).astype(float)
    assert np.corrcoef(small.ravel(), shown.astype(float).ravel())[0, 1] > 0.5
