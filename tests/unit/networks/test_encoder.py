"""The encoder: the same bits in any company, mirrors, sizes, refusals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stemma.config import EncoderSettings
from stemma.errors import BadRequest, Corrupt
from stemma.flow import Encoded
from stemma.networks import weights as weights_files
from stemma.networks.backbones import Lite0, parameter_count
from stemma.networks.encoder import PAPER, STARTER, Encoder, EncoderNetwork, fill, quantise, squash

Picture = NDArray[np.uint8]
Scene = Callable[..., Picture]


def same(a: Encoded, b: Encoded) -> bool:
    assert a.cells_VNF is not None and b.cells_VNF is not None
    return np.array_equal(a.embedding_VD, b.embedding_VD) and np.array_equal(a.cells_VNF, b.cells_VNF)


def test_shapes_and_types(encoder: Encoder, scene: Scene) -> None:
    made = encoder.encode(scene(1), mirrored=True)
    assert made.embedding_VD.shape == (2, 256) and made.embedding_VD.dtype == np.int8
    assert made.cells_VNF is not None and made.cells_VNF.shape == (2, 196, 32) and made.cells_VNF.dtype == np.int8
    assert made.weights == weights_files.card().digest and not made.featureless
    lengths = np.linalg.norm(made.embedding_VD.astype(float), axis=1) / encoder.card.embedding_scale
    assert np.allclose(lengths, 1, atol=0.02)


def test_the_bits_do_not_depend_on_company(encoder: Encoder, scene: Scene) -> None:
    pictures = [scene(1), scene(2, 64, 300), scene(3, 512, 200)]
    alone = [encoder.encode(picture, mirrored=True) for picture in pictures]
    together = encoder.encode_batch(pictures, mirrored=True)
    turned = encoder.encode_batch(pictures[::-1], mirrored=True)[::-1]
    upright = encoder.encode_batch(pictures, mirrored=False)
    for one, two, three, four in zip(alone, together, turned, upright, strict=True):
        assert same(one, two) and same(one, three)
        assert np.array_equal(one.embedding_VD[:1], four.embedding_VD)


def test_a_batch_of_places_leaves_empty_ones_out(scene: Scene) -> None:
    card, tensors = weights_files.read_tensors()
    network = EncoderNetwork(STARTER)
    fill(network, tensors, subject="test")
    padded = Encoder(network, card)
    padded._places = 4  # as on a GPU
    few = padded.encode_batch([scene(1)], mirrored=True)[0]
    more = padded.encode_batch([scene(1), scene(2), scene(3)], mirrored=True)
    assert same(few, more[0]) and len(more) == 3


def test_the_mirrored_view_is_the_mirrored_picture(encoder: Encoder, scene: Scene) -> None:
    picture = scene(4, 301, 437)
    both = encoder.encode(picture, mirrored=True)
    flipped = encoder.encode(np.ascontiguousarray(picture[:, ::-1]), mirrored=True)
    assert np.array_equal(both.embedding_VD, flipped.embedding_VD[::-1])
    assert both.cells_VNF is not None and flipped.cells_VNF is not None
    assert np.array_equal(both.cells_VNF, flipped.cells_VNF[::-1])


@pytest.mark.parametrize("size", [(32, 512), (512, 32), (1, 1), (33, 35)])
def test_odd_sizes_give_numbers(encoder: Encoder, scene: Scene, size: tuple[int, int]) -> None:
    made = encoder.encode(scene(5, *size), mirrored=True)
    assert np.abs(made.embedding_VD.astype(int)).sum() > 0


@pytest.mark.parametrize("bad", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3))])
def test_only_uint8_rgb(encoder: Encoder, bad: NDArray[np.generic]) -> None:
    with pytest.raises(ValueError, match="uint8"):
        encoder.encode(bad, mirrored=False)  # type: ignore[arg-type]


def test_int8_costs_little(encoder: Encoder, scene: Scene) -> None:
    with torch.inference_mode():
        image_B3HW = torch.from_numpy(squash(scene(6)))[None].permute(0, 3, 1, 2).float()
        unit_BD, unit_BNF = encoder._network(image_B3HW)
    made = encoder.encode(scene(6), mirrored=False)
    assert made.cells_VNF is not None
    cosine = unit_BD[0].numpy() @ made.embedding_VD[0] / np.linalg.norm(made.embedding_VD[0].astype(float))
    assert cosine > 0.998
    cells = made.cells_VNF[0].astype(float)
    assert ((unit_BNF[0].numpy() * cells).sum(1) / np.linalg.norm(cells, axis=1)).min() > 0.995


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=64), st.floats(1, 500))
def test_quantise_rounds_and_clips(values: list[float], scale: float) -> None:
    unit = np.array(values, np.float32)
    levels = quantise(unit, scale).astype(float)
    inside = np.abs(unit * scale) <= 127
    assert np.array_equal(levels[~inside], np.sign(unit[~inside]) * 127)
    assert np.all(np.abs(levels - unit * scale)[inside] <= 0.5 + 1e-3)


def test_the_paper_size_has_the_papers_shapes() -> None:
    with torch.device("meta"):
        network = EncoderNetwork(PAPER)
        embedding_BD, cells_BNF = network(torch.empty(2, 3, 224, 224))
    assert embedding_BD.shape == (2, 256) and cells_BNF.shape == (2, 196, 32)
    # ResNet50 without its classifier has 23,508,032; one FC 2048 -> 256 with bias takes its place
    assert parameter_count(network) == 23_508_032 + 2048 * 256 + 256
    assert network.trunk.net.fc.weight.shape == (256, 2048)  # type: ignore[union-attr]


def test_the_starter_size_has_the_public_networks_shapes() -> None:
    with torch.device("meta"):
        network = EncoderNetwork(STARTER)
        features, cells = network.trunk(torch.empty(1, 3, 224, 224))
    assert features.shape == (1, 1280, 7, 7) and cells.shape == (1, 112, 14, 14)
    # the public checkpoint counts 4,652,008 with its classifier 1280 -> 1000
    assert parameter_count(network) == 4_652_008 - 1280 * 1000 - 1000


def test_folding_changes_nothing() -> None:
    torch.manual_seed(0)
    network = Lite0().eval()
    for name, buffer in network.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
        if name.endswith("running_mean"):
            buffer.uniform_(-0.5, 0.5)
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        plain, folded = network(image), network.fold()(image)
    for before, after in zip(plain, folded, strict=True):
        assert torch.allclose(before, after, atol=1e-4)


def _copy(folder: Path, **changes: object) -> str:
    card, source = weights_files.card(), weights_files.resolve(None)
    (folder / weights_files.ENCODER_FILE).write_bytes((source / weights_files.ENCODER_FILE).read_bytes())
    weights_files.write_card(folder, dataclasses.replace(card, **changes))
    return str(folder)


def test_other_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"encoder\.size"):
        Encoder.load(EncoderSettings(weights=_copy(tmp_path, size="paper")))


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    folder = _copy(tmp_path)
    body = bytearray((tmp_path / weights_files.ENCODER_FILE).read_bytes())
    body[-1] ^= 1
    (tmp_path / weights_files.ENCODER_FILE).write_bytes(body)
    with pytest.raises(Corrupt, match="card says"):
        Encoder.load(EncoderSettings(weights=folder))


def test_tensors_that_do_not_fit_are_refused() -> None:
    _, tensors = weights_files.read_tensors()
    without = {name: tensor for name, tensor in tensors.items() if name != "cells.mean_C"}
    with pytest.raises(Corrupt, match=r"cells\.mean_C"):
        fill(EncoderNetwork(STARTER), without, subject="test")
    with pytest.raises(Corrupt, match="do not fit"):
        fill(EncoderNetwork(STARTER), {**tensors, "cells.mean_C": np.zeros(3, np.float32)}, subject="test")
