"""One training step of the detector, in both sizes, and what its validation says; ``training.detection`` feeds it."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import Tensor, nn

from stemma.networks import detector
from stemma.networks.backbones import Lite0
from training.detection import Batch, Boxes, Labelled, wanted
from training.workers import Alone, Workers, average_gradients

State = dict[str, Any]

TRUNK = ("backbone.stem", "backbone.cells", "backbone.deep")
RECALL_IOU = 0.5
RECALL_BOXES = 8


class DetectorTraining(BaseModel):
    """How a detector is trained. Steps count optimizer updates, each over one global batch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: Literal["starter", "paper"] = "starter"
    seed: int = Field(0, ge=0)
    steps: int = Field(2_000, ge=1)
    batch: int = Field(4, ge=1, description="pictures of one step, over all workers")
    rate: float = Field(1e-3, gt=0, description="learning rate at its height: AdamW (starter), SGD (paper)")
    warmup_steps: int = Field(100, ge=0)
    decay: Literal["steps", "cosine"] = Field("steps", description="how the rate falls: tenfold, or along a cosine")
    decay_at: tuple[float, ...] = Field((0.7, 0.9), description="steps: shares of them at which the rate falls tenfold")
    trunk_rate: float = Field(1.0, gt=0, le=1, description="share of the rate that the unfrozen trunk learns at")
    weight_decay: float = Field(1e-4, ge=0)
    frozen_stages: int = Field(
        6, ge=0, le=6, description="starter: Lite0 stages, with the stem, that keep their weights"
    )
    average: float = Field(0.99, ge=0, lt=1, description="decay of the averaged weights that are validated; 0: none")
    gradient_norm_max: float = Field(10.0, gt=0)
    side_px: int = Field(416, ge=64, description="longest side of a sample")
    further: Annotated[Path, AfterValidator(Path.resolve)] | None = Field(
        None,
        description="folder of more photographs (.jpg), labelled by YOLOX-nano; workers have other folders than ours",
    )


def build(settings: DetectorTraining, trunk: Lite0 | None = None) -> nn.Module:
    """A new network, initialised by the seed alone; ``trunk`` is where the starter's features start from."""
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        network: nn.Module = detector.build(settings.size, trunk)
    if isinstance(network.backbone, detector.Lite0Pyramid):
        network.backbone.freeze(settings.frozen_stages)
    return network


class DetectorStep:
    """A network, its optimizer and its averaged twin: all that a checkpoint holds besides the step's number."""

    def __init__(
        self,
        settings: DetectorTraining,
        network: nn.Module,
        workers: Workers | None = None,
        *,
        device: str | torch.device = "cpu",
    ) -> None:
        self.settings, self.device = settings, torch.device(device)
        self.network = network.to(self.device)
        self.averaged = copy.deepcopy(network).requires_grad_(False)
        self._workers: Workers = workers or Alone()
        learned = _groups(network, settings.trunk_rate)
        self._optimizer: torch.optim.Optimizer
        if settings.size == "paper":
            self._optimizer = torch.optim.SGD(
                learned, lr=settings.rate, momentum=0.9, weight_decay=settings.weight_decay
            )
        else:
            self._optimizer = torch.optim.AdamW(learned, lr=settings.rate, weight_decay=settings.weight_decay)

    def step(self, batch: Batch, t: int) -> dict[str, float]:
        """One update on this worker's share of global batch ``t``; the loss (OE-SIR eq. 2-3) and its parts."""
        self.network.train()
        with torch.random.fork_rng(devices=[]):
            # anchors and boxes are sampled: from the step's number, so that a resumed run samples the same
            torch.manual_seed(self.settings.seed * 1_000_003 + t * self._workers.world + self._workers.rank)
            parts: dict[str, Tensor] = self.network(*inputs(batch, self.settings.size, self.device))
        loss = torch.stack(list(parts.values())).sum()
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        average_gradients(self.network.parameters(), self._workers)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.gradient_norm_max)
        for group in self._optimizer.param_groups:
            group["lr"] = rate(self.settings, t) * group["share"]
        self._optimizer.step()
        self._follow(t)
        names = ["loss", *(name.removeprefix("loss_") for name in parts), "gradient_norm", "rate"]
        shared = self._workers.mean(torch.stack([loss.detach(), *(part.detach() for part in parts.values())])).tolist()
        return dict(zip(names, [*shared, float(norm), rate(self.settings, t)], strict=True))

    @torch.no_grad()
    def _follow(self, t: int) -> None:
        """Move the averaged weights; early on they follow faster, or they would keep the random start."""
        decay = min(self.settings.average, (1 + t) / (10 + t))
        own = dict(self.network.named_parameters())
        for name, mine in self.averaged.named_parameters():
            if own[name].requires_grad:
                mine.lerp_(own[name], 1 - decay)

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


def _groups(network: nn.Module, trunk_rate: float) -> list[dict[str, Any]]:
    """What is learned, in the trunk and beside it; ``share`` is of the rate."""
    parts: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            parts[name.startswith(TRUNK)].append(parameter)
    shares = {True: trunk_rate, False: 1.0}
    return [{"params": found, "share": shares[trunk]} for trunk, found in parts.items() if found]


def inputs(batch: Batch, size: str, device: torch.device) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """A batch as torchvision's detectors take it; every box is of class 1."""
    divisor = 1.0 if size == "starter" else 255.0
    images = [torch.from_numpy(rgb).to(device).permute(2, 0, 1).float() / divisor for rgb, _ in batch]
    targets = [
        {
            "boxes": torch.from_numpy(boxes).to(device).float(),
            "labels": torch.ones(len(boxes), dtype=torch.int64, device=device),
        }
        for _, boxes in batch
    ]
    return images, targets


def rate(settings: DetectorTraining, t: int) -> float:
    """Learning rate of step ``t``: up along a line, then down, tenfold at each of ``decay_at`` or along a cosine."""
    if t < settings.warmup_steps:
        return settings.rate * (t + 1) / settings.warmup_steps
    if settings.decay == "cosine":
        passed = (t - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
        return settings.rate * (1 + math.cos(math.pi * min(1.0, passed))) / 2
    falls = sum(t >= share * settings.steps for share in settings.decay_at)
    return float(settings.rate * 0.1**falls)


def covered(truth_T4: Boxes, found_O4: Boxes) -> NDArray[np.bool_]:
    """Which true boxes some region covers, at an IoU of half."""
    return np.asarray(detector.overlaps(truth_T4, found_O4).max(1, initial=0.0) >= RECALL_IOU)


def finder(network: nn.Module, size: detector.DetectorSize) -> detector.Detector:
    """A copy of the network, ready to detect."""
    return detector.Detector(copy.deepcopy(network), size=size)


def validate(network: nn.Module, source: Labelled, size: detector.DetectorSize) -> dict[str, float]:
    """Recall at IoU .5 with 8 regions of the ``wanted`` objects, on people's and on YOLOX's boxes, and of pasted ones.

    ``score``, their mean, is what the best checkpoint has most of: nine annotated photographs are few.
    """
    found = finder(network, size)
    hits: dict[str, list[bool]] = {"recall": [], "recall_labelled": [], "recall_pasted": []}
    for place, people in enumerate(source.annotated):
        box_O4, _ = detector.regions(source.photographs[place], found, RECALL_BOXES)
        name = "recall" if people else "recall_labelled"
        hits[name] += covered(wanted(source.boxes[place]), box_O4).tolist()
    for one in source.pasted:
        box_O4, _ = detector.regions(one.rgb_HWC, found, RECALL_BOXES)
        hits["recall_pasted"] += covered(np.array([one.box], np.float32), box_O4).tolist()
    said = {name: float(np.mean(mine)) if mine else 0.0 for name, mine in hits.items()}
    return said | {"score": float(np.mean(list(said.values())))}
