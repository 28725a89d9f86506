"""Published weights come in by names alone: the same outputs as the network they were published for."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.optical_flow import raft_large, raft_small

from stemma.errors import BadRequest, Corrupt, NotFound
from stemma.networks import public, raft, weights
from stemma.networks.backbones import Lite0, lite0_keys
from stemma.networks.encoder import PAPER, STARTER, EncoderNetwork, fill

State = dict[str, Tensor]


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """A network with weights that float16 holds exactly, so that a round trip can be compared to the bit."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = build().eval()
        with torch.no_grad():
            for name, tensor in network.state_dict().items():
                if tensor.is_floating_point():
                    # statistics and scales of norms that are not their first values, or a mix-up would not show
                    noise = torch.rand_like(tensor) * 0.2 if ".norm" in name or "bn" in name or ".1." in name else 0
                    tensor.copy_((tensor + noise).half().float())
    return network


def raft_original(state: State) -> State:
    """torchvision's RAFT under the names of princeton-vl/RAFT, as its ``core/extractor.py`` and ``update.py`` nest."""
    out: State = {}
    for name, tensor in state.items():
        new = name
        for ours, theirs in (("feature_encoder", "fnet"), ("context_encoder", "cnet")):
            new = new.replace(f"{ours}.convnormrelu.0", f"{theirs}.conv1").replace(
                f"{ours}.convnormrelu.1", f"{theirs}.norm1"
            )
            new = new.replace(f"{ours}.conv.", f"{theirs}.conv2.").replace(f"{ours}.", f"{theirs}.")
        new = re.sub(r"convnormrelu(\d)\.0", r"conv\1", new)
        new = re.sub(r"convnormrelu(\d)\.1", r"norm\1", new)
        new = re.sub(r"motion_encoder\.conv(c)orr(\d)\.0", r"encoder.conv\1\2", new)
        new = re.sub(r"motion_encoder\.conv(f)low(\d)\.0", r"encoder.conv\1\2", new)
        new = new.replace("motion_encoder.conv.0", "encoder.conv")
        # the small network has one GRU, without a number
        number = r"\1" if "mask_predictor.conv.weight" in state else ""
        new = re.sub(r"recurrent_block\.convgru(\d)\.conv([zrq])", rf"gru.conv\2{number}", new)
        new = new.replace("mask_predictor.convrelu.0", "update_block.mask.0")
        new = new.replace("mask_predictor.conv.", "update_block.mask.2.")
        out["module." + new] = tensor
        if "cnet" in new and "downsample.1" in new:
            # one norm, registered twice
            out["module." + new.replace("downsample.1", "norm3")] = tensor
    return out


@pytest.mark.parametrize(("size", "build"), [("small", raft_small), ("large", raft_large)])
@pytest.mark.parametrize("layout", ["torchvision", "original"])
def test_raft_of_either_layout_gives_the_published_flow(
    tmp_path: Path, size: str, build: Callable[..., nn.Module], layout: str
) -> None:
    network = seeded(lambda: build(weights=None))
    state = network.state_dict() if layout == "torchvision" else raft_original(network.state_dict())
    if layout == "original":
        assert any(name.startswith("module.fnet.layer1.0.conv1") for name in state)
        assert not any("convnormrelu" in name or "feature_encoder" in name for name in state)
    torch.save({"state_dict": state}, tmp_path / "raft.pth")
    card = public.take_over(f"raft_{size}", tmp_path / "raft.pth", tmp_path / "out")
    assert card == weights.flow_card(tmp_path / "out") and card.size == size
    first, second = (torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(n)) * 2 - 1 for n in (1, 2))
    with torch.inference_mode():
        expected = network(first, second, num_flow_updates=2)[-1]
        got = raft.load_shipped(tmp_path / "out", updates=2)(first, second)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("classes", [1000, 256])
def test_resnet50_is_the_papers_trunk(tmp_path: Path, classes: int) -> None:
    network: Any = seeded(lambda: resnet50(weights=None, num_classes=classes))
    torch.save(network.state_dict(), tmp_path / "resnet50.pth")
    card = public.take_over("resnet50", tmp_path / "resnet50.pth", tmp_path / "out")
    assert card.size == "paper" and any("first values" in line for line in card.limits)
    ours = EncoderNetwork(PAPER).eval()
    fill(ours, weights.read_tensors(tmp_path / "out")[1], subject="test")
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        z_BD, cells_BCHW = ours.trunk(picture)
        early = network.layer1(network.maxpool(network.relu(network.bn1(network.conv1(picture)))))
        assert torch.equal(cells_BCHW, network.layer3(network.layer2(early)))
        assert (classes == 256) == torch.equal(z_BD, network(picture))


def test_lite0_is_the_starters_trunk(tmp_path: Path) -> None:
    network = seeded(Lite0)
    state = network.state_dict()
    theirs = {key: state[ours].contiguous() for ours, key in lite0_keys()} | {"classifier.bias": torch.zeros(1000)}
    save_file(theirs, tmp_path / "lite0.safetensors")
    card = public.take_over("efficientnet_lite0", tmp_path / "lite0.safetensors", tmp_path / "out")
    ours = EncoderNetwork(STARTER).eval()
    fill(ours, weights.read_tensors(tmp_path / "out")[1], subject="test")
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip(ours.trunk(picture), network(picture), strict=True))
    assert card.size == "starter" and any("Apache-2.0" in line for line in card.licences)


def without_one(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name != "layer1.0.conv1.weight"}


def with_another(state: State) -> State:
    return {**state, "layer5.conv.weight": torch.zeros(1)}


def of_another_shape(state: State) -> State:
    return {**state, "layer1.0.conv1.weight": torch.zeros(3, 3, 1, 1)}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (without_one, r"lacks layer1\.0\.conv1\.weight"),
        (with_another, r"unexpected layer5\.conv\.weight"),
        (of_another_shape, r"layer1\.0\.conv1\.weight is \[3, 3, 1, 1\]"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(
    tmp_path: Path, change: Callable[[State], State], named: str
) -> None:
    with torch.device("meta"):
        network = resnet50(weights=None)
    state = {name: torch.zeros(tensor.shape) for name, tensor in network.state_dict().items()}
    torch.save(change(state), tmp_path / "resnet50.pth")
    with pytest.raises(BadRequest, match=named):
        public.take_over("resnet50", tmp_path / "resnet50.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Dangerous:
    """Would run a function when unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran"),))


def test_nothing_in_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Dangerous()}, tmp_path / "bad.pth")
    with pytest.raises(Corrupt, match="without running"):
        public.read_state(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()


def test_files_that_hold_no_tensors_are_corrupt(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"no archive")
    (tmp_path / "a.safetensors").write_bytes(b"no tensors")
    torch.save({"epoch": 3}, tmp_path / "b.pth")
    for name in ("a.pth", "a.safetensors", "b.pth"):
        with pytest.raises(Corrupt):
            public.read_state(tmp_path / name)
    with pytest.raises(NotFound):
        public.read_state(tmp_path / "none.pth")
    with pytest.raises(BadRequest, match="raft_small"):
        public.take_over("alexnet", tmp_path / "b.pth", tmp_path / "out")
