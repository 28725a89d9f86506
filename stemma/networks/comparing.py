"""The comparator as a whole, for one process: working copies in, ``Judged`` out.

A pair goes: align (``alignment``), lay the query over the original, compare (``comparator`` or ``paper_comparator``),
bring the maps back to the query (``explain``). Shape letters: H, W rows and columns; C channels; B pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stemma.config import ComparatorSettings
from stemma.errors import BadRequest, Corrupt
from stemma.flow import Float, Judged, Pairing
from stemma.networks import comparator, explain, raft, weights
from stemma.networks.alignment import Aligner, Alignment, FlowOf, coarse, explained, lay, to_square
from stemma.networks.comparator import Compared, StarterComparator
from stemma.networks.weights import ComparatorCard
from stemma.vision import geometry
from stemma.vision.decode import read_working_copy
from stemma.vision.geometry import Map33, Picture

FLOW_UPDATES = 6
GRID_SIDE = 56
"""Side at which DIC's 7 x 7 map is drawn before it is laid on the query."""


class Network(Protocol):
    """Either size: ([B, 3, H, W] query and original, 0..255, validity [B, 1, H, W]) -> ``Compared``."""

    def __call__(self, query_B3HW: Tensor, original_B3HW: Tensor, valid_B1HW: Tensor) -> Compared: ...


@dataclass(frozen=True, slots=True)
class _Laid:
    """A pair before the network: the query over the original's square, and the way between their pixels."""

    query_HWC: Picture
    original_HWC: Picture
    valid_HW: Picture
    alignment: Alignment
    transform_33: Map33
    query_size: geometry.Size
    original_size: geometry.Size
    explained: float


class Comparator:
    """Compares queries with originals. On the CPU pair by pair on one thread, so an answer does not depend on what is
    compared beside it; on a GPU all pairs of a call in one batch."""

    def __init__(
        self, network: Network, card: ComparatorCard, *, flow: FlowOf | None = None, device: str = "cpu"
    ) -> None:
        self._network, self.card, self._device = network, card, torch.device(device)
        self._aligner = Aligner(flow)

    @classmethod
    def load(cls, settings: ComparatorSettings) -> Comparator:
        """The comparator of these settings. Raises ``NotFound`` and ``Corrupt`` for its weights."""
        card, tensors = weights.read_comparator(settings.weights)
        if card.size != settings.size:
            raise BadRequest(f"these weights are of size {card.size}, asked was {settings.size}", subject=card.name)
        network = _network(settings.size)
        try:
            network.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()})
        except RuntimeError as error:
            raise Corrupt(f"these are not the tensors of this comparator: {error}", subject=card.name) from error
        network.eval().requires_grad_(False).to(settings.device).to(memory_format=torch.channels_last)
        flow = raft_flow(settings.weights, settings.device) if settings.flow else None
        return cls(cast(Network, network), card, flow=flow, device=settings.device)

    def compare(self, query_HWC: Picture, pairings: Sequence[Pairing]) -> list[Judged]:
        """One query, uint8 RGB [H, W, 3] at working size, with some originals; in the order given."""
        return self.compare_batch([(query_HWC, pairings)])[0]

    def compare_batch(self, asked: Sequence[tuple[Picture, Sequence[Pairing]]]) -> list[list[Judged]]:
        """Several queries, each with its own originals."""
        _one_thread()
        laid = [self._lay(query_HWC, pairing) for query_HWC, pairings in asked for pairing in pairings]
        size = 1 if self._device.type == "cpu" else max(1, len(laid))
        judged = [one for start in range(0, len(laid), size) for one in self._judge(laid[start : start + size])]
        coming = iter(judged)
        return [[next(coming) for _ in pairings] for _, pairings in asked]

    def _lay(self, query_HWC: Picture, pairing: Pairing) -> _Laid:
        original_HWC, side = read_working_copy(pairing.original), self.card.side_px
        sizes = _size(query_HWC), _size(original_HWC)
        alignment = self._aligner.align(query_HWC, original_HWC, affine=pairing.affine, mirrored=pairing.mirrored)
        if alignment.transform_33 is None:
            # nothing aligned; laid as verification has it, for the classes alone
            *_, (_, square_33) = coarse(pairing.affine, pairing.mirrored, side)
            transform_33 = geometry.scaling(sizes[1][0] / side, sizes[1][1] / side) @ square_33
            transform_33 = transform_33 @ geometry.scaling(side / sizes[0][0], side / sizes[0][1])
        else:
            transform_33 = alignment.transform_33
            square_33 = to_square(transform_33, *sizes, side)
        laid_HWC, valid_HW = lay(query_HWC, square_33, side)
        small_HWC = geometry.resize(original_HWC, (side, side))
        share = explained(query_HWC, original_HWC, transform_33)
        return _Laid(laid_HWC, small_HWC, valid_HW, alignment, transform_33, *sizes, share)

    def _judge(self, laid: Sequence[_Laid]) -> list[Judged]:
        query_B3HW, original_B3HW = (
            self._tensor([getattr(one, name) for one in laid]).permute(0, 3, 1, 2)
            for name in ("query_HWC", "original_HWC")
        )
        valid_B1HW = self._tensor([one.valid_HW for one in laid])[:, None] / 255
        with torch.inference_mode():
            said = self._network(query_B3HW, original_B3HW, valid_B1HW)
            grid_BHW = comparator.grid_heatmap(said.grid_B77, GRID_SIDE)
            # the paper's network has no map but its grid
            map_BHW = grid_BHW if said.map_logits_B1hw is None else comparator.probability_map(said, valid_B1HW)
            logits_B3, map_BHW, grid_BHW = (one.float().cpu() for one in (said.logits_B3, map_BHW, grid_BHW))
        chances_B3 = explain.probabilities(logits_B3.numpy(), self.card.temperature)
        return [
            _judged(one, logits_3, chances_3, map_HW, grid_HW)
            for one, logits_3, chances_3, map_HW, grid_HW in zip(
                laid, logits_B3.tolist(), chances_B3, map_BHW.numpy(), grid_BHW.numpy(), strict=True
            )
        ]

    def _tensor(self, pictures: Sequence[Picture]) -> Tensor:
        return torch.from_numpy(np.stack(pictures)).to(self._device).float()


def _judged(laid: _Laid, logits_3: list[float], chances_3: Float, map_HW: Float, grid_HW: Float) -> Judged:
    aligned = laid.alignment.transform_33 is not None
    maps = [
        explain.on_query(one_HW, laid.transform_33, laid.query_size, laid.original_size) for one_HW in (map_HW, grid_HW)
    ]
    heatmap_RC, grid_RC = maps if aligned else [np.zeros_like(one) for one in maps]
    benign, manipulated, distinct = (float(chance) for chance in chances_3)
    return Judged(
        benign=benign,
        manipulated=manipulated,
        distinct=distinct,
        logits=(logits_3[0], logits_3[1], logits_3[2]),
        heatmap_RC=heatmap_RC,
        transform=geometry.as_rows(laid.transform_33) if aligned else None,
        mirrored=laid.alignment.mirrored,
        correlation=laid.alignment.correlation,
        grid_RC=grid_RC,
        explained=laid.explained,
    )


class _PaperNetwork(nn.Module):
    """``PaperComparator`` behind the starter's signature: it takes -1..1 and aligns by its own flow."""

    def __init__(self) -> None:
        super().__init__()
        from stemma.networks.paper_comparator import PaperComparator

        self.net = PaperComparator()

    def forward(self, query_B3HW: Tensor, original_B3HW: Tensor, valid_B1HW: Tensor) -> Compared:  # noqa: ARG002 - see above
        said: Compared = self.net(query_B3HW / 127.5 - 1, original_B3HW / 127.5 - 1)
        return said

    def load_state_dict(self, state_dict, strict=True, assign=False):  # type: ignore[no-untyped-def]
        return self.net.load_state_dict(state_dict, strict, assign)


def _network(size: str) -> nn.Module:
    return _PaperNetwork() if size == "paper" else StarterComparator()


def raft_flow(folder: str | None, device: str = "cpu") -> FlowOf:
    """RAFT-small of these weights as the aligner asks for it. Raises ``NotFound`` and ``Corrupt``."""
    net = raft.load_shipped(folder, updates=FLOW_UPDATES).to(device)

    def tensor(picture_HWC: Picture) -> Tensor:
        return torch.from_numpy(picture_HWC).to(device).permute(2, 0, 1)[None].float() / 127.5 - 1

    def flow(first_HWC: Picture, second_HWC: Picture) -> NDArray[np.float32]:
        with torch.inference_mode():
            out_HW2: Tensor = net(tensor(first_HWC), tensor(second_HWC))[0].permute(1, 2, 0)
            return np.asarray(out_HW2.cpu().numpy(), np.float32)

    return flow


def _size(picture_HWC: Picture) -> geometry.Size:
    return picture_HWC.shape[1], picture_HWC.shape[0]


def _one_thread() -> None:
    # two threads on a busy machine cost more than they give, and the bits would depend on them
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)
    if cv2.getNumThreads() != 1:
        cv2.setNumThreads(1)
