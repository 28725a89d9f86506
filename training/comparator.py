"""One training step of the comparator, in both sizes, and what its validation says.

``starter``: cross-entropy over the classes, the cosine of DIC's 7 x 7 head, cross-entropy and overlap of the heatmap.
``paper``: w_c L_C + w_t L_T (DIC eq. 8-10), end to end through the flow.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from stemma.networks import comparator
from stemma.networks.backbones import Lite0
from stemma.networks.comparator import BENIGN, CLASSES, DISTINCT, MANIPULATED, Compared, StarterComparator
from stemma.networks.paper_comparator import Fusion, PaperComparator
from training import losses
from training.data import Batch, collate
from training.losses import Term
from training.pairs import Pair, PairSettings
from training.workers import Alone, Workers, average_gradients

State = dict[str, Any]
TRUNK_RATE = 0.2
"""Learning rate of the pretrained trunk, as a share of the new layers'."""
SHOWN_MIN = 0.5
GRID_SHOWN_MIN = 0.35
"""DIC's threshold, on the normalised map."""


class ComparatorSettings(BaseModel):
    """How a comparator is trained. Steps count optimizer updates, each over one global batch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: Literal["starter", "paper"] = "starter"
    seed: int = Field(0, ge=0)
    steps: int = Field(2_000, ge=1)
    batch: int = Field(16, ge=1, description="pairs of one step, over all workers")
    rate: float = Field(1e-3, gt=0, description="Adam's learning rate at its height")
    warmup_steps: int = Field(50, ge=0)
    rate_end: float = Field(
        0.02, ge=0, le=1, description="share of the rate left at the last step (cosine); 1: constant"
    )
    weight_decay: float = Field(1e-4, ge=0)
    frozen_stages: int = Field(2, ge=0, le=5, description="Lite0 stages, with the stem, that keep their weights")
    average: float = Field(0.99, ge=0, lt=1, description="decay of the averaged weights that are validated; 0: none")
    gradient_norm_max: float = Field(5.0, gt=0)
    class_weight: float = Field(1.0, ge=0, description="w_c")
    grid_weight: float = Field(0.25, ge=0, description="w_t")
    map_weight: float = Field(4.0, ge=0)
    overlap_weight: float = Field(1.0, ge=0)
    aligned: bool = Field(True, description="paper: with F_A; false is an ablation of Table 3")
    fusion: Fusion = Field("blocks", description="paper: how '4 ResNet residual blocks' are read")
    pairs: PairSettings = PairSettings()


def build(settings: ComparatorSettings, trunk: Lite0 | None = None) -> nn.Module:
    """A new network, initialised by the seed alone; ``trunk`` is where the starter's features start from."""
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        if settings.size == "paper":
            return PaperComparator(aligned=settings.aligned, fusion=settings.fusion)
        network = StarterComparator(trunk)
    network.trunk.freeze(settings.frozen_stages)
    return network.to(memory_format=torch.channels_last)


def moved(batch: Batch, device: torch.device) -> Batch:
    """The batch on ``device``; itself where it is there already."""
    return Batch(*(part.to(device, non_blocking=True) for part in batch))


def compare(network: nn.Module, batch: Batch) -> Compared:
    """The network's say on a batch; the paper's takes -1..1 and no validity."""
    if isinstance(network, PaperComparator):
        out: Compared = network(batch.query_B3HW / 127.5 - 1, batch.original_B3HW / 127.5 - 1)
    else:
        out = network(batch.query_B3HW, batch.original_B3HW, batch.valid_B1HW)
    return out


def terms(said: Compared, batch: Batch, settings: ComparatorSettings) -> dict[str, tuple[float, Term]]:
    """(weight, term) of each part of the loss, by name."""
    truth_B77 = losses.grid_truth(batch.mask_B1HW, batch.label_B)
    parts = {
        "classes": (settings.class_weight, losses.classes(said.logits_B3, batch.label_B)),
        "grid": (settings.grid_weight, losses.grid(said.grid_B77, truth_B77)),
    }
    if said.map_logits_B1hw is not None:
        size = (said.map_logits_B1hw.shape[2], said.map_logits_B1hw.shape[3])
        truth_B1hw = losses.map_truth(batch.mask_B1HW, size)
        # a stranger has no edited place
        whole_B1hw = (losses.map_truth(batch.counted_B1HW, size) == 1.0) & (batch.label_B != DISTINCT)[
            :, None, None, None
        ]
        weight_B1hw = whole_B1hw.float()
        bce = losses.map_bce(said.map_logits_B1hw, truth_B1hw, weight_B1hw)
        overlap = losses.map_overlap(said.map_logits_B1hw, truth_B1hw, weight_B1hw, batch.label_B)
        parts |= {"map": (settings.map_weight, bce), "overlap": (settings.overlap_weight, overlap)}
    return parts


class ComparatorStep:
    """A network, its optimizer and its averaged twin: all that a checkpoint holds besides the step's number."""

    def __init__(
        self,
        settings: ComparatorSettings,
        network: nn.Module,
        workers: Workers | None = None,
        *,
        device: str | torch.device = "cpu",
    ) -> None:
        """Takes ``network`` to ``device``, and every batch with it."""
        self.settings, self.device = settings, torch.device(device)
        self.network = network.to(self.device)
        self.averaged = copy.deepcopy(network).requires_grad_(False)
        self._workers: Workers = workers or Alone()
        trunk = {id(p) for name, p in network.named_parameters() if name.startswith("trunk.")}
        learned = [p for p in network.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in learned if id(p) not in trunk], "share": 1.0},
            {"params": [p for p in learned if id(p) in trunk], "share": TRUNK_RATE},
        ]
        self._optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=settings.rate, weight_decay=settings.weight_decay
        )

    def step(self, batch: Batch, t: int) -> dict[str, float]:
        """One update on this worker's share of global batch ``t``; the loss and its parts over the whole batch."""
        self.network.train()
        batch = moved(batch, self.device)
        parts = terms(compare(self.network, batch), batch, self.settings)
        counts = self._workers.mean(torch.stack([term.count for _, term in parts.values()]))
        # a mean count may lie under 1 where one worker of several has anything to count
        counts = torch.where(counts > 0, counts, 1.0)
        # totals over mean counts, so that averaged over workers this is the loss of the whole batch
        means = torch.stack([term.total for _, term in parts.values()]) / counts
        weights = torch.tensor([weight for weight, _ in parts.values()], device=self.device)
        loss = (weights * means).sum()
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        average_gradients(self.network.parameters(), self._workers)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.gradient_norm_max)
        for group in self._optimizer.param_groups:
            group["lr"] = group["share"] * rate(self.settings, t)
        self._optimizer.step()
        self._follow(t)
        shared = self._workers.mean(torch.cat([loss.detach()[None], means.detach()])).tolist()
        names = ["loss", *parts, "gradient_norm", "rate"]
        return dict(zip(names, [*shared, float(norm), rate(self.settings, t)], strict=True))

    @torch.no_grad()
    def _follow(self, t: int) -> None:
        """Move the averaged weights; early on they follow faster, or they would keep the random start."""
        decay = min(self.settings.average, (1 + t) / (10 + t))
        state = self.network.state_dict()
        for name, mine in self.averaged.state_dict().items():
            if mine.is_floating_point():
                mine.lerp_(state[name], 1 - decay)
            else:
                mine.copy_(state[name])

    def begin(self, tensors: dict[str, Tensor]) -> int:
        """Start from another run's weights, where names and shapes agree; returns how many tensors did."""
        state = self.network.state_dict()
        fitting = {name: one for name, one in tensors.items() if name in state and state[name].shape == one.shape}
        for network in (self.network, self.averaged):
            network.load_state_dict(fitting, strict=False)
        return len(fitting)

    def state_dict(self) -> State:
        return {
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        self.network.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["averaged"])
        self._optimizer.load_state_dict(state["optimizer"])


def rate(settings: ComparatorSettings, t: int) -> float:
    """Learning rate of step ``t``: up along a line, down along half a cosine."""
    if t < settings.warmup_steps:
        return settings.rate * (t + 1) / settings.warmup_steps
    done = (t - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    left = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return settings.rate * (settings.rate_end + (1 - settings.rate_end) * left)


@torch.inference_mode()
def validate(network: nn.Module, samples: Iterable[Pair], batch: int = 16) -> dict[str, float]:
    """Shares of right classes by kind and heatmap IoU, in the original's square, over pairs that choose checkpoints.

    A pair that was relabelled (too little of the edit is left) is not counted. ``score``, the mean of the class shares
    and IoUs, is what the best checkpoint has most of.
    """
    network.eval()
    device = next(network.parameters(), torch.empty(0)).device
    pairs = list(samples)
    rows: dict[str, list[float]] = {}
    for start in range(0, len(pairs), batch):
        part = pairs[start : start + batch]
        inputs = moved(collate(part), device)
        said = compare(network, inputs)
        ious = {"iou": _map_iou(said, inputs), "grid_iou": _grid_iou(said, inputs)}
        for place, (pair, chosen) in enumerate(zip(part, said.logits_B3.argmax(1).tolist(), strict=True)):
            if (pair.kind in ("manip", "both")) != (pair.label == MANIPULATED):
                continue
            rows.setdefault(f"right_{pair.kind}", []).append(float(chosen == pair.label))
            for name, iou_B in ious.items():
                if pair.label == MANIPULATED and iou_B is not None:
                    rows.setdefault(f"{name}_{pair.kind}", []).append(float(iou_B[place]))
    out = {name: sum(values) / len(values) for name, values in sorted(rows.items())}
    scored = [value for name, value in out.items() if not name.startswith("grid_")]
    return out | {"score": sum(scored) / max(1, len(scored)), "pairs": float(len(pairs))}


def _map_iou(said: Compared, batch: Batch) -> Tensor | None:
    if said.map_logits_B1hw is None:
        return None
    shown_BHW = comparator.heatmap(said, batch.valid_B1HW)
    return _iou(_sized(shown_BHW, batch) > SHOWN_MIN, batch)


def _grid_iou(said: Compared, batch: Batch) -> Tensor:
    """As the paper counts: gated by the predicted class, everything for distinct, nothing for benign."""
    shown_BHW = comparator.grid_heatmap(said.grid_B77, batch.mask_B1HW.shape[2]) > GRID_SHOWN_MIN
    chosen_B11 = said.logits_B3.argmax(1)[:, None, None]
    return _iou((shown_BHW & (chosen_B11 != BENIGN)) | (chosen_B11 == CLASSES.index("distinct")), batch)


def _sized(map_BHW: Tensor, batch: Batch) -> Tensor:
    return functional.interpolate(map_BHW[:, None], size=batch.mask_B1HW.shape[2:], mode="bilinear").squeeze(1)


def _iou(shown_BHW: Tensor, batch: Batch) -> Tensor:
    truth_BHW = batch.mask_B1HW.squeeze(1) > 0.5
    either_B = (shown_BHW | truth_BHW).sum((1, 2))
    return (shown_BHW & truth_BHW).sum((1, 2)) / either_B.clamp_min(1)
