"""Comparators of both sizes: shapes and parameters as stated, gradients where they should go and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stemma.networks import comparator
from stemma.networks.backbones import BATCHNORM_EPS, Lite0, parameter_count
from stemma.networks.comparator import Compared, Pyramid, StarterComparator, photometric
from stemma.networks.paper_comparator import FusionNetwork, PaperComparator, SharedEncoder
from training import losses

SIDE = 64


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(seed: int, count: int = 2, side: int = SIDE) -> Tensor:
    small = torch.rand(count, 3, 8, 8, generator=seeded(seed)) * 255
    return torch.nn.functional.interpolate(small, size=(side, side), mode="bicubic").clamp(0, 255)


@pytest.fixture(scope="module")
def starter() -> StarterComparator:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return StarterComparator().eval()


def test_starter_shapes_and_size() -> None:
    with torch.device("meta"):
        network = StarterComparator()
        for side in (160, 224):
            out = network(torch.zeros(2, 3, side, side), torch.zeros(2, 3, side, side), torch.ones(2, 1, side, side))
            assert out.logits_B3.shape == (2, 3)
            assert out.grid_B77.shape == (2, 7, 7)
            assert out.map_logits_B1hw is not None and out.map_logits_B1hw.shape == (2, 1, side // 2, side // 2)
    # docs/architecture.md gives the comparator 12 MB; in float16 this is 2.3
    assert 2 * parameter_count(network) < 12e6
    assert parameter_count(network) == 1165943


def test_folding_leaves_what_the_trunk_says() -> None:
    """Frozen statistics: the convolution with BatchNorm folded in is the same function."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        plain = Lite0().eval()
        for module in plain.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                assert module.eps == BATCHNORM_EPS
                torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
                torch.nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    image = pictures(2)
    with torch.no_grad():
        _, cells = plain((image - 127) / 128)
        maps = Pyramid(plain)(image)
    assert [tuple(one.shape[1:]) for one in maps] == [(24, 16, 16), (40, 8, 8), (112, 4, 4)]
    assert torch.allclose(maps[-1], cells, atol=1e-4)


def test_freezing_stops_gradients_behind_it_alone(starter: StarterComparator) -> None:
    pyramid = Pyramid()
    pyramid.freeze(2)
    sum(one.mean() for one in pyramid(pictures(3))).backward()
    frozen = {name for name, p in pyramid.named_parameters() if p.grad is None}
    assert frozen and all(name.startswith(("stem", "cells.0", "cells.1")) for name in frozen)
    assert {name for name, p in pyramid.named_parameters() if not p.requires_grad} == frozen
    assert all(p.requires_grad for p in starter.parameters())


def test_photometric_undoes_gain_and_bias_in_spite_of_an_edit() -> None:
    original = pictures(4) * 0.5 + 50
    query = original * 0.6 + 40
    query[:, :, 10:30, 10:30] = 255.0
    valid = torch.ones(2, 1, SIDE, SIDE)
    fitted = photometric(query, original, valid)
    outside = torch.ones(2, 1, SIDE, SIDE, dtype=torch.bool)
    outside[:, :, 10:30, 10:30] = False
    error = (fitted - original).abs().mean(1, keepdim=True)
    assert float(error[outside].mean()) < 3.0
    assert float((query - original).abs().mean(1, keepdim=True)[outside].mean()) > 9.0
    assert float(error[~outside].mean()) > 60.0


def test_photometric_survives_a_flat_picture_and_no_overlap() -> None:
    flat = torch.full((1, 3, 16, 16), 7.0)
    assert torch.isfinite(photometric(flat, pictures(5, 1, 16), torch.ones(1, 1, 16, 16))).all()
    assert torch.isfinite(photometric(pictures(5, 1, 16), flat, torch.zeros(1, 1, 16, 16))).all()


def test_a_pair_does_not_depend_on_its_neighbours(starter: StarterComparator) -> None:
    query, original, valid = pictures(6, 3), pictures(7, 3), torch.ones(3, 1, SIDE, SIDE)
    with torch.no_grad():
        together = starter(query, original, valid)
        alone = starter(query[1:2], original[1:2], valid[1:2])
    for whole, part in zip(together, alone, strict=True):
        assert torch.allclose(whole[1:2], part, atol=1e-4)


def test_what_lies_outside_the_overlap_is_not_seen(starter: StarterComparator) -> None:
    query, original, valid = pictures(8), pictures(9), torch.ones(2, 1, SIDE, SIDE)
    valid[:, :, :, 40:] = 0
    other = query.clone()
    other[:, :, :, 40:] = 255
    with torch.no_grad():
        first, second = starter(query, original, valid), starter(other, original, valid)
        shown = comparator.heatmap(first, valid)
    assert torch.equal(first.logits_B3, second.logits_B3)
    # 56 columns over 64 pixels: what lies wholly right of pixel 40
    assert float(shown[:, :, 37:].abs().max()) == 0.0
    assert shown.shape == (2, 56, 56) and float(shown.min()) >= 0.0 and float(shown.max()) <= 1.0


def test_the_heatmap_is_absolute() -> None:
    logits = torch.full((1, 1, 80, 80), -1.0)
    shown = comparator.heatmap(Compared(torch.zeros(1, 3), torch.zeros(1, 7, 7), logits), torch.ones(1, 1, 160, 160))
    assert torch.allclose(shown, torch.sigmoid(torch.tensor(-1.0)), atol=1e-5)


def test_the_papers_map_is_clamped_normalised_and_clipped() -> None:
    grid = torch.zeros(3, 7, 7)
    grid[0, 3, 3] = 4.0
    grid[0, 0, 0] = -9.0
    grid[1] = 2.5
    shown = comparator.grid_heatmap(grid, 56)
    assert shown.shape == (3, 56, 56)
    assert float(shown[0].max()) == pytest.approx(1.0, abs=0.05) and float(shown[0, :8, :8].max()) < 0.01
    # a flat "distinct" map stays 1, where min-max would be 0/0; an empty one stays empty
    assert torch.allclose(shown[1], torch.ones(56, 56)) and float(shown[2].abs().max()) == 0.0


@pytest.mark.parametrize("labels", [[0, 0], [1, 2]])
def test_starter_losses_are_finite_and_reach_every_parameter(labels: list[int]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        network = StarterComparator()
    valid, label = torch.ones(2, 1, SIDE, SIDE), torch.tensor(labels)
    mask = torch.zeros(2, 1, SIDE, SIDE)
    mask[:, :, 8:30, 8:30] = 1
    out = network(pictures(10), pictures(11), valid)
    assert out.map_logits_B1hw is not None
    truth = losses.map_truth(mask, (SIDE // 2, SIDE // 2)) * (label == 1)[:, None, None, None]
    loss = losses.classes(out.logits_B3, label).mean + losses.grid(out.grid_B77, losses.grid_truth(mask, label)).mean
    loss = loss + losses.map_bce(out.map_logits_B1hw, truth, torch.ones_like(truth)).mean
    loss.backward()
    assert torch.isfinite(loss)
    without = {name for name, p in network.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()}
    assert without == set()


# The paper's network, to the letter (docs/papers.md 1.3)


def conv(inputs: int, outputs: int, kernel: int, *, bias: bool) -> int:
    return inputs * outputs * kernel * kernel + bias * outputs


def test_paper_shapes_and_parameters() -> None:
    with torch.device("meta"):
        network = PaperComparator()
        image = torch.zeros(2, 3, 224, 224)
        features = network.features(image)
        z = network.fusion(features, features)
        out = network(image, image)
    assert features.shape == (2, 128, 56, 56)
    assert z.shape == (2, 256)
    assert network.fusion.blocks(torch.zeros(2, 256, 56, 56, device="meta")).shape == (2, 512, 7, 7)
    assert out.logits_B3.shape == (2, 3) and out.grid_B77.shape == (2, 7, 7) and out.map_logits_B1hw is None
    assert network.flow is not None and network.flow.updates == 12 and parameter_count(network.flow) == 5_257_536
    f_e = conv(3, 32, 3, bias=True) + 2 * 32 + conv(32, 64, 3, bias=True) + 2 * 64 + conv(64, 128, 3, bias=True)
    assert parameter_count(network.features) == f_e == 93_440
    f_s = 512 * 256 + 256
    for inputs, outputs, down in ((256, 128, True), (128, 256, True), (256, 512, True), (512, 512, True)):
        f_s += conv(inputs, outputs, 3, bias=False) + conv(outputs, outputs, 3, bias=False) + 4 * outputs
        f_s += down * (conv(inputs, outputs, 1, bias=False) + 2 * outputs)
    assert parameter_count(network.fusion) == f_s
    assert parameter_count(network.classify) == 256 * 3 + 3 and parameter_count(network.grid) == 256 * 49 + 49


def test_f_e_is_shared_and_in_the_order_of_the_text() -> None:
    kinds = [type(layer).__name__ for layer in SharedEncoder().layers]
    once = ["Conv2d", "ReLU", "BatchNorm2d", "MaxPool2d"]
    assert kinds == [*once, *once, "Conv2d"]
    assert len(FusionNetwork().blocks) == 4 and len(FusionNetwork("stages").blocks) == 8


def test_the_fusion_knows_which_picture_is_the_query() -> None:
    fusion = FusionNetwork().eval()
    a, b = torch.randn(2, 1, 128, 8, 8, generator=seeded(12)).unbind()
    with torch.no_grad():
        assert not torch.allclose(fusion(a, b), fusion(b, a), atol=1e-3)


def test_gradients_of_both_losses_reach_the_flow() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = PaperComparator()
    assert network.flow is not None
    network.flow.updates = 1
    # BatchNorm wants more than one value a channel, RAFT at least 128 px
    query, original = (pictures(seed, 2, 128) / 127.5 - 1 for seed in (13, 14))
    out = network(query, original)
    label = torch.tensor([1, 2])
    mask = torch.zeros(2, 1, 128, 128)
    mask[:, :, 20:60, 20:60] = 1
    terms = (losses.classes(out.logits_B3, label), losses.grid(out.grid_B77, losses.grid_truth(mask, label)))
    for loss in (term.mean for term in terms):
        network.zero_grad()
        loss.backward(retain_graph=True)
        total = sum(float(p.grad.abs().sum()) for p in network.flow.parameters() if p.grad is not None)
        assert torch.isfinite(loss) and total > 0


def test_benign_pairs_alone_train_the_paper_network_too() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        network = PaperComparator(aligned=False)
    query, original = (pictures(seed, 2, 32) / 127.5 - 1 for seed in (15, 16))
    label = torch.zeros(2, dtype=torch.long)
    out = network(query, original)
    loss = 0.5 * losses.classes(out.logits_B3, label).mean
    loss = loss + 0.5 * losses.grid(out.grid_B77, losses.grid_truth(torch.zeros(2, 1, 32, 32), label)).mean
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in network.parameters())
    assert network.align(query, original) is query
