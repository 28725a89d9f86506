"""Published weights under our names: torchvision's state dicts and RAFT's original layout, by key mapping alone.

A file is read without running anything in it (``weights_only``); what it lacks or brings too much is named. Nothing is
trained or fitted here, so an encoder that was imported is where training starts, not something to search with.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from stemma.errors import BadRequest, Corrupt, NotFound
from stemma.flow import EMBEDDING_DIM
from stemma.networks import weights
from stemma.networks.backbones import lite0_keys
from stemma.networks.encoder import PAPER, SIZES, STARTER, EncoderNetwork
from stemma.networks.raft import DenseFlow
from stemma.networks.weights import Card, FlowCard, Tensors

State = Mapping[str, Tensor]
SEED = 0
"""Of what a published network does not have: a first FC, first projections."""
UNIT_SCALE = 127.0
NAMED_MAX = 5
COUNTER = "num_batches_tracked"

_RAFT_STEPS: tuple[tuple[str, str], ...] = (
    (r"^fnet\.", "feature_encoder."),
    (r"^cnet\.", "context_encoder."),
    (r"_encoder\.conv1\.", "_encoder.convnormrelu.0."),
    (r"_encoder\.norm1\.", "_encoder.convnormrelu.1."),
    (r"_encoder\.conv2\.", "_encoder.conv."),
    (r"(layer\d\.\d)\.conv(\d)\.", r"\1.convnormrelu\2.0."),
    (r"(layer\d\.\d)\.norm(\d)\.", r"\1.convnormrelu\2.1."),
    (r"^update_block\.encoder\.conv([cf])(\d)\.", r"update_block.motion_encoder.conv\1\2.0."),
    (r"motion_encoder\.convc", "motion_encoder.convcorr"),
    (r"motion_encoder\.convf", "motion_encoder.convflow"),
    (r"^update_block\.encoder\.conv\.", "update_block.motion_encoder.conv.0."),
    (r"^update_block\.gru\.conv([zrq])\.", r"update_block.recurrent_block.convgru1.conv\1."),
    (r"^update_block\.gru\.conv([zrq])([12])\.", r"update_block.recurrent_block.convgru\2.conv\1."),
    (r"^update_block\.mask\.0\.", "mask_predictor.convrelu.0."),
    (r"^update_block\.mask\.2\.", "mask_predictor.conv."),
)
_RAFT_SHORTCUT_NORM = re.compile(r"(layer\d\.\d)\.norm3\.")
"""Stored twice in the original: as the block's own and inside its shortcut (``downsample.1``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A published network that can be taken over."""

    write: Callable[[State, Path, str], Card | FlowCard]
    """(state dict, folder, name of the card) -> card, everything written."""
    what: str
    licence: str


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` or PyTorch file, ``module.`` of a parallel wrapper taken off.

    Raises ``NotFound`` where there is no file and ``Corrupt`` for one that holds anything but tensors.
    """
    if not path.is_file():
        raise NotFound("there is no such file", subject=str(path))
    tensors = _safetensors(path) if path.suffix == ".safetensors" else _pytorch(path)
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise Corrupt(f"this is no safetensors file: {error}", subject=str(path)) from error
    return tensors


def _pytorch(path: Path) -> dict[str, Tensor]:
    if not zipfile.is_zipfile(path):
        raise Corrupt(
            "this is no PyTorch file of version 1.6 or later; save it anew with torch.save", subject=str(path)
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise Corrupt(f"the file cannot be read without running what is in it: {error}", subject=str(path)) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise Corrupt("this is no state dict: a mapping from names to tensors", subject=str(path))
    return dict(state)


def take_over(architecture: str, path: Path, folder: Path) -> Card | FlowCard:
    """Write ``path``'s network into ``folder`` as weights with a card.

    Raises ``BadRequest`` for a name that is not in ``SOURCES`` and for tensors that are not that network's, naming
    them; nothing is written then.
    """
    source = SOURCES.get(architecture)
    if source is None:
        raise BadRequest(f"{architecture!r} cannot be imported; there are {', '.join(SOURCES)}", subject=architecture)
    return source.write(read_state(path), folder, folder.resolve().name)


def raft_names(state: State) -> dict[str, Tensor]:
    """RAFT's tensors under torchvision's names; those already under them stay."""
    if not any(name.startswith("fnet.") for name in state):
        return dict(state)
    # in the small network norm3 is a layer of its own, but an instance norm without tensors
    return {_raft_name(name): tensor for name, tensor in state.items() if not _RAFT_SHORTCUT_NORM.search(name)}


def _raft_name(name: str) -> str:
    for pattern, replacement in _RAFT_STEPS:
        name = re.sub(pattern, replacement, name)
    return name


def _flow(size: str) -> Callable[[State, Path, str], FlowCard]:
    def write(state: State, folder: Path, name: str) -> FlowCard:
        with torch.device("meta"):
            net = DenseFlow("small" if size == "small" else "large").net
        tensors = raft_names(state)
        _same_names(tensors, net, f"RAFT {size}")
        # files from before PyTorch counted BatchNorm's batches lack the counters, and loading asks for them
        tensors |= {key: torch.zeros((), dtype=torch.int64) for key in net.state_dict() if key not in tensors}
        digest = weights.write_flow(folder, weights.narrow(_arrays(tensors)))
        source = SOURCES[f"raft_{size}"]
        card = FlowCard(
            name=name, size=size, digest=digest, what=source.what, origin="imported", licences=(source.licence,)
        )
        weights.write_card(folder, card)
        return card

    return write


def _encoder(state: State, folder: Path, name: str, size_name: str) -> Card:
    """The trunk is the file's; FC, projections and thresholds are first values, and the card says so."""
    size = SIZES[size_name]
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        network = EncoderNetwork(size)
        for projection in (network.cells, network.embedding):
            if projection is not None:
                nn.init.orthogonal_(projection.components_DC)
    tensors = {key: tensor for key, tensor in network.state_dict().items() if not key.endswith(COUNTER)}
    tensors.update(state)
    digest = weights.write_tensors(
        folder, weights.narrow(_arrays(tensors)), embedding_scale=UNIT_SCALE, cells_scale=UNIT_SCALE
    )
    source = SOURCES["resnet50" if size is PAPER else "efficientnet_lite0"]
    card = Card(
        name=name,
        size=size.name,
        digest=digest,
        embedding_scale=UNIT_SCALE,
        cells_scale=UNIT_SCALE,
        match_threshold=0.0,
        calibration=(),
        what=source.what,
        seed=SEED,
        licences=(source.licence,),
        limits=(
            "The trunk alone was imported. Projections, scales and threshold are first values: train and fit them.",
        ),
    )
    weights.write_card(folder, card)
    return card


def _resnet50(state: State, folder: Path, name: str) -> Card:
    with torch.device("meta"):
        net = EncoderNetwork(PAPER).trunk.net
    assert isinstance(net, nn.Module)
    # a classifier of ImageNet's thousand is no embedding; one of 256 is
    kept = {key: one for key, one in state.items() if not key.startswith("fc.") or one.shape[0] == EMBEDDING_DIM}
    _same_names(kept, net, "ResNet50", may_lack=("fc.weight", "fc.bias"))
    named = {f"trunk.net.{key}": tensor for key, tensor in kept.items() if not key.endswith(COUNTER)}
    return _encoder(named, folder, name, PAPER.name)


def _lite0(state: State, folder: Path, name: str) -> Card:
    ours = {theirs: f"trunk.{key}" for key, theirs in lite0_keys()}
    kept = {key: one for key, one in state.items() if not key.endswith(COUNTER) and not key.startswith("classifier.")}
    _complain(set(ours) - set(kept), set(kept) - set(ours), "EfficientNet-Lite0")
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in EncoderNetwork(STARTER).state_dict().items()}
    named = {ours[key]: tensor for key, tensor in kept.items()}
    _complain_of_shapes({key: tensor.shape for key, tensor in named.items()}, shapes, "EfficientNet-Lite0")
    return _encoder(named, folder, name, STARTER.name)


def _same_names(tensors: State, net: nn.Module, name: str, *, may_lack: tuple[str, ...] = ()) -> None:
    wanted = {key: tensor.shape for key, tensor in net.state_dict().items()}
    counters = {key for key in wanted if key.endswith(COUNTER)}
    _complain(set(wanted) - set(tensors) - counters - set(may_lack), set(tensors) - set(wanted), name)
    _complain_of_shapes({key: tensor.shape for key, tensor in tensors.items()}, wanted, name)


def _complain(missing: set[str], unexpected: set[str], name: str) -> None:
    said = [
        f"{verb} {', '.join(sorted(keys)[:NAMED_MAX])}"
        + (f" and {len(keys) - NAMED_MAX} more" * (len(keys) > NAMED_MAX))
        for verb, keys in (("lacks", missing), ("brings unexpected", unexpected))
        if keys
    ]
    if said:
        raise BadRequest(f"this is not {name}: it {', and '.join(said)}", subject=name)


def _complain_of_shapes(found: Mapping[str, torch.Size], wanted: Mapping[str, torch.Size], name: str) -> None:
    for key, shape in found.items():
        if shape != wanted[key]:
            raise BadRequest(f"this is not {name}: {key} is {list(shape)}, not {list(wanted[key])}", subject=name)


def _arrays(tensors: State) -> Tensors:
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


SOURCES: dict[str, Source] = {
    "resnet50": Source(
        write=_resnet50,
        what="torchvision's ResNet50, imported as the trunk of the paper's encoder",
        licence="torchvision: BSD-3-Clause; the weights are as the file's own source says",
    ),
    "efficientnet_lite0": Source(
        write=_lite0,
        what="EfficientNet-Lite0, imported as the trunk of the starter's encoder",
        licence="EfficientNet-Lite0: Apache-2.0; the weights are as the file's own source says",
    ),
    "raft_small": Source(
        write=_flow("small"),
        what="RAFT-small, imported; torchvision's names",
        licence="RAFT: BSD-3-Clause (princeton-vl/RAFT); the weights are as the file's own source says",
    ),
    "raft_large": Source(
        write=_flow("large"),
        what="RAFT-large, imported: what F_A of the paper's comparator starts from; torchvision's names",
        licence="RAFT: BSD-3-Clause (princeton-vl/RAFT); the weights are as the file's own source says",
    ),
}
