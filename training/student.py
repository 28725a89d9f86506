"""One training step of a student (OE-SIR 4.2, eq. 6): it learns the teacher's map; detector and teacher stay.

Samples are windows of training photographs, mirrored or not; no label is read. The loss is the mean square over all
elements: the printed norm is unsquared, but the text calls it mean-squared (docs/papers.md 2.2, 17).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional

from stemma.errors import BadRequest, Conflict
from stemma.networks import detector, encoder
from stemma.networks import weights as weights_files
from stemma.networks.encoder import EncoderNetwork
from stemma.networks.students import SIZES, Frozen, Kind, Student
from stemma.vision import geometry
from stemma.vision.geometry import Picture
from training import data
from training.data import Photographs
from training.workers import Alone, Workers, average_gradients, share_statistics

WINDOW_MIN = 0.35
"""Least share of a photograph's sides that a window takes: objects are smaller than pictures."""
MIRROR_SHARE = 0.5
VALIDATION_WINDOWS = 2
"""Of each validation photograph."""
VALIDATION_BATCH = 14
VARIANCE_MIN = 1e-12


class StudentTraining(BaseModel):
    """How a student is trained. Steps count optimizer updates, each over one global batch of windows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: Literal["starter", "paper"] = "starter"
    kind: Kind = Field("s3", description="s1: from the picture; s2: from F_2; s3: from F_2, F_3 and F_4")
    seed: int = Field(0, ge=0)
    steps: int = Field(600, ge=1)
    batch: int = Field(32, ge=2, description="windows of one step, over all workers")
    rate: float = Field(1e-3, gt=0, description="learning rate of Adam")
    decay_at: tuple[float, ...] = Field((), description="shares of the steps at which the rate falls tenfold")
    side_px: int = Field(128, ge=32, description="square that a window is brought to")
    teacher: str | None = Field(None, description="folder of the encoder's weights; none: those shipped")
    detector: str | None = Field(None, description="folder of the detector's weights; none: those shipped")


class StudentData:
    """Numbered windows: each epoch visits every photograph once, in an order of its own."""

    def __init__(self, photographs: Photographs, *, seed: int, side_px: int) -> None:
        self.photographs, self.seed, self.side_px = photographs, seed, side_px

    def sample(self, n: int) -> Picture:
        """uint8 [side, side, 3], a pure function of the seed and ``n``."""
        count = len(self.photographs)
        epoch, place = divmod(n, count)
        index = int(np.random.default_rng([self.seed, 5, epoch]).permutation(count)[place])
        rng = np.random.default_rng([self.seed, 6, n])
        rgb_HWC = self.photographs[index]
        height, width = rgb_HWC.shape[:2]
        h, w = (max(1, round(size * rng.uniform(WINDOW_MIN, 1))) for size in (height, width))
        y, x = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
        cut_HWC = rgb_HWC[y : y + h, x : x + w]
        if rng.random() < MIRROR_SHARE:
            cut_HWC = cut_HWC[:, ::-1]
        return geometry.resize(np.ascontiguousarray(cut_HWC), (self.side_px, self.side_px))

    def collate(self, samples: Sequence[Picture]) -> Tensor:
        """float32 [B, 3, side, side] in 0..255."""
        stacked = torch.from_numpy(np.stack(samples)).permute(0, 3, 1, 2).float()
        return stacked.contiguous(memory_format=torch.channels_last)

    def numbers(self, step: int, *, batch: int, rank: int, world: int) -> list[int]:
        return data.numbers(step, batch=batch, rank=rank, world=world)


def build(settings: StudentTraining) -> Student:
    """A new student, initialised by the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = Student(SIZES[settings.size], settings.kind)
    return network.to(memory_format=torch.channels_last)


def frozen(settings: StudentTraining) -> tuple[Frozen, dict[str, str]]:
    """Detector and teacher of ``settings``, and the digests of their weights.

    Raises ``BadRequest`` for weights of another size: what ships is the starter's.
    """
    teacher_card, teacher_tensors = weights_files.read_tensors(settings.teacher)
    detector_card, detector_tensors = weights_files.read_detector(settings.detector)
    for key, card in (("teacher", teacher_card), ("detector", detector_card)):
        if card.size != settings.size:
            raise BadRequest(
                f"a student of size {settings.size} needs weights of that size, and {card.name} is {card.size}; "
                f"give their folder as student.{key}",
                subject=f"student.{key}",
            )
    teacher = EncoderNetwork(encoder.SIZES[settings.size])
    encoder.fill(teacher, teacher_tensors, subject=teacher_card.name)
    finder = detector.filled(detector_card, detector_tensors)
    made = Frozen(finder.backbone, teacher).to(memory_format=torch.channels_last)
    return made, {"teacher": teacher_card.digest, "detector": detector_card.digest}


class StudentStep:
    """A student and its optimizer: all that a checkpoint holds, with the digests of what it learns from."""

    def __init__(
        self,
        settings: StudentTraining,
        network: Student,
        fixed: Frozen,
        workers: Workers | None = None,
        *,
        digests: dict[str, str] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        """Takes both networks to ``device``, and every batch with it."""
        if not settings.size == network.size.name == fixed.size.name:
            raise ValueError(
                f"settings are for {settings.size}, the networks {network.size.name} and {fixed.size.name}"
            )
        self.settings, self.device = settings, torch.device(device)
        self._workers: Workers = workers or Alone()
        self._digests = digests or {}
        share_statistics(network, self._workers)
        self.network, self.fixed = network.to(self.device), fixed.to(self.device)
        self._optimizer = torch.optim.Adam(self.network.parameters(), lr=settings.rate)

    def step(self, batch: Tensor, t: int) -> dict[str, float]:
        """One update on this worker's share of global batch ``t``; the loss over the whole batch (eq. 6)."""
        self.network.train()
        loss = functional.mse_loss(*said_and_true(self.network, self.fixed, batch.to(self.device)))
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        average_gradients(self.network.parameters(), self._workers)
        for group in self._optimizer.param_groups:
            group["lr"] = rate(self.settings, t)
        self._optimizer.step()
        return {"loss": float(self._workers.mean(loss)), "rate": rate(self.settings, t)}

    def begin(self, tensors: dict[str, Tensor]) -> int:
        """Start from another student's weights, where names and shapes agree; returns how many tensors did."""
        state = self.network.state_dict()
        fitting = {name: one for name, one in tensors.items() if name in state and state[name].shape == one.shape}
        self.network.load_state_dict(fitting, strict=False)
        return len(fitting)

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "digests": self._digests,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ``Conflict`` where the teacher or the detector is another one by now."""
        for name, digest in self._digests.items():
            if state["digests"].get(name) != digest:
                raise Conflict(
                    f"this student learned from another {name}; start a new run, or name those weights", subject=name
                )
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])


def said_and_true(network: Student, fixed: Frozen, image_B3HW: Tensor) -> tuple[Tensor, Tensor]:
    """(the student's map, the teacher's) of pictures in 0..255."""
    x_B3HW = fixed.normalised(image_B3HW)
    return network(x_B3HW, fixed.guidance(x_B3HW)), fixed.target(x_B3HW)


def rate(settings: StudentTraining, t: int) -> float:
    """Learning rate of step ``t``: tenfold less after each of ``decay_at``."""
    return float(settings.rate * 0.1 ** sum(t >= share * settings.steps for share in settings.decay_at))


def validation_data(folder: Path, settings: StudentTraining, seed: int) -> list[Tensor]:
    """Windows of the 49 that choose checkpoints, the same in every run."""
    photographs = data.validation_photographs(folder)
    source = StudentData(photographs, seed=seed, side_px=settings.side_px)
    samples = [source.sample(n) for n in range(VALIDATION_WINDOWS * len(photographs))]
    return [source.collate(samples[i : i + VALIDATION_BATCH]) for i in range(0, len(samples), VALIDATION_BATCH)]


@torch.inference_mode()
def validate(network: Student, fixed: Frozen, batches: Sequence[Tensor]) -> dict[str, float]:
    """``mse`` of eq. 6, and as ``score`` the share of the teacher's variance about its own mean, channel by channel,
    that the student explains: 1 for the teacher itself, 0 for the mean of each channel, less for worse."""
    network.eval()
    device = next(network.parameters()).device
    error = total = count = 0.0
    sum_C, square_C = torch.zeros(fixed.size.widths[-1]), torch.zeros(fixed.size.widths[-1])
    for batch in batches:
        said_BCHW, true_BCHW = said_and_true(network, fixed, batch.to(device))
        error += float((said_BCHW - true_BCHW).square().sum())
        total += true_BCHW.numel()
        count += true_BCHW[:, 0].numel()
        sum_C += true_BCHW.sum((0, 2, 3)).cpu()
        square_C += true_BCHW.square().sum((0, 2, 3)).cpu()
    spread = float((square_C - sum_C.square() / count).sum())
    return {"mse": error / total, "score": 1 - error / max(spread, VARIANCE_MIN)}
