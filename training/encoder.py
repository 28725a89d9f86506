"""One training step of the retrieval encoder (DIC 3.1), in both sizes.

``paper``: every view an anchor against all others, after E_b (256 -> 128), which is used in training alone.
``starter`` (``clean=True``): what is deployed compares clean originals with changed queries, and so does training:
changed views against the clean embeddings of a slowly following twin, with a queue of past ones as further negatives.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from stemma.errors import BadRequest
from stemma.flow import EMBEDDING_DIM
from stemma.networks.backbones import Lite0
from stemma.networks.encoder import SIZES, EncoderNetwork
from training import losses
from training.groups import GroupBatch
from training.losses import Form
from training.workers import Alone, Workers, average_gradients

EMPTY = -1
"""Photograph number of a place in the queue that holds nothing yet."""

GEM_MIN = 1e-12
"""Mean cube that counts as 0; its root, 1e-4, lies far under any feature that tells something."""


class EncoderTraining(BaseModel):
    """How an encoder is trained. Steps count optimizer updates, each over one global batch of originals."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: Literal["starter", "paper"] = "starter"
    seed: int = Field(0, ge=0)
    steps: int = Field(600, ge=1)
    batch: int = Field(16, ge=2, description="originals of one step, over all workers; four views of each")
    rate: float = Field(1e-3, gt=0, description="learning rate of SGD")
    decay_at: tuple[float, ...] = Field((0.6, 0.9), description="shares of the run after which the rate falls")
    decay: float = Field(0.1, gt=0, le=1)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)
    temperature: float = Field(0.1, gt=0, description="tau")
    form: Form = "printed"
    projected: int = Field(128, ge=1, description="width of E_b's output; 256 starts as the identity")
    clean: bool = Field(False, description="anchor clean originals through a following twin")
    queue: int = Field(0, ge=0, description="past clean embeddings that are negatives")
    frozen_cells: bool = Field(
        False, description="keep the trunk through its stride-16 stage: stored cells and the match threshold stay valid"
    )
    follow: float = Field(0.99, ge=0, lt=1, description="decay of the twin's weights")


class EncoderStep:
    """A network, E_b, the following twin, the queue and the optimizer: all that a checkpoint holds."""

    def __init__(
        self,
        settings: EncoderTraining,
        network: EncoderNetwork,
        workers: Workers | None = None,
        *,
        device: str | torch.device = "cpu",
    ) -> None:
        """Takes ``network`` to ``device``, and every batch with it."""
        if network.size.name != settings.size:
            raise ValueError(f"settings are for {settings.size}, the network is {network.size.name}")
        self.settings, self.device = settings, torch.device(device)
        self.network: EncoderNetwork = network.eval().to(self.device)
        self._workers: Workers = workers or Alone()
        self.projection = _projection(settings).to(self.device)
        if settings.frozen_cells:
            _freeze_cells(network)
        if network.embedding is not None:
            # fitted by PCA so far; it is trained from there
            network.embedding.components_DC.requires_grad_(True)
        self._learned = [one for one in self._tensors(network, self.projection) if one.requires_grad]
        self._twin, self._twin_projection = copy.deepcopy(network), copy.deepcopy(self.projection)
        for tensor in self._tensors(self._twin, self._twin_projection):
            tensor.requires_grad_(False)
        self._queue_QD = torch.zeros(settings.queue, settings.projected, device=self.device)
        self._photograph_Q = torch.full((settings.queue,), EMPTY, device=self.device)
        self._optimizer = torch.optim.SGD(
            self._learned, lr=settings.rate, momentum=settings.momentum, weight_decay=settings.weight_decay
        )

    def step(self, batch: GroupBatch, t: int) -> dict[str, float]:
        """One update on this worker's share of global batch ``t``; the loss over the whole batch."""
        # statistics of BatchNorm stay as they are: batches are small, and the index is built in eval mode
        self.network.eval()
        batch = moved(batch, self.device)
        e_BD = self.projection(_embedding(self.network, batch.view_B3HW))
        loss = self._against_clean(e_BD, batch) if self.settings.clean else self._against_views(e_BD, batch)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        average_gradients(self._learned, self._workers)
        for group in self._optimizer.param_groups:
            group["lr"] = rate(self.settings, t)
        self._optimizer.step()
        self._follow()
        return {"loss": float(self._workers.mean(loss)), "rate": rate(self.settings, t)}

    def _against_views(self, e_BD: Tensor, batch: GroupBatch) -> Tensor:
        pool_P = self._everyones(batch.photograph_B)
        return losses.contrastive(
            e_BD,
            batch.photograph_B,
            temperature=self.settings.temperature,
            form=self.settings.form,
            pool_PD=self._workers.gather(e_BD),
            pool_group_P=pool_P,
            first=self._workers.rank * len(e_BD),
        )

    def _against_clean(self, e_BD: Tensor, batch: GroupBatch) -> Tensor:
        with torch.no_grad():
            clean_GD = self._twin_projection(_embedding(self._twin, batch.clean_G3HW))
            clean_PD, photograph_P = self._workers.gather(clean_GD), self._everyones(batch.photograph_G)
        # a photograph's own past embedding would be a false negative, or a stale positive
        kept_Q = (self._photograph_Q != EMPTY) & ~torch.isin(self._photograph_Q, photograph_P)
        loss = losses.contrastive(
            e_BD,
            batch.photograph_B,
            temperature=self.settings.temperature,
            form=self.settings.form,
            pool_PD=torch.cat([clean_PD, self._queue_QD[kept_Q]]),
            pool_group_P=torch.cat([photograph_P, self._photograph_Q[kept_Q]]),
            first=None,
        )
        self._queue_QD = torch.cat([clean_PD, self._queue_QD])[: self.settings.queue]
        self._photograph_Q = torch.cat([photograph_P, self._photograph_Q])[: self.settings.queue]
        return loss

    def _everyones(self, number_B: Tensor) -> Tensor:
        return self._workers.gather(number_B[:, None].double()).squeeze(1).long()

    @torch.no_grad()
    def _follow(self) -> None:
        twins = self._tensors(self._twin, self._twin_projection)
        for own, other in zip(twins, self._tensors(self.network, self.projection), strict=True):
            own.lerp_(other, 1 - self.settings.follow)

    @staticmethod
    def _tensors(network: EncoderNetwork, projection: nn.Linear) -> list[Tensor]:
        """Everything that learning may move, the same way for the network and its twin."""
        return [*network.parameters(), *_components(network), *projection.parameters()]

    def begin(self, tensors: dict[str, Tensor]) -> int:
        """Start from other weights, where names and shapes agree; returns how many tensors did."""
        state = self.network.state_dict()
        fitting = {name: one for name, one in tensors.items() if name in state and state[name].shape == one.shape}
        for network in (self.network, self._twin):
            network.load_state_dict(fitting, strict=False)
        return len(fitting)

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "projection": self.projection.state_dict(),
            "twin": self._twin.state_dict(),
            "twin_projection": self._twin_projection.state_dict(),
            "queue": self._queue_QD,
            "photographs": self._photograph_Q,
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.projection.load_state_dict(state["projection"])
        self._twin.load_state_dict(state["twin"])
        self._twin_projection.load_state_dict(state["twin_projection"])
        self._queue_QD, self._photograph_Q = (state[name].to(self.device) for name in ("queue", "photographs"))
        self._optimizer.load_state_dict(state["optimizer"])


def moved(batch: GroupBatch, device: torch.device) -> GroupBatch:
    """The batch on ``device``; itself where it is there already."""
    return GroupBatch(*(part.to(device, non_blocking=True) for part in batch))


def _freeze_cells(network: EncoderNetwork) -> None:
    trunk = network.trunk
    if not isinstance(trunk, Lite0):
        raise BadRequest("frozen_cells is for the starter's trunk", subject="encoder.frozen_cells")
    for part in (trunk.stem, trunk.cells):
        part.requires_grad_(False)


def build(settings: EncoderTraining) -> EncoderNetwork:
    """A new network, initialised by the seed alone; the caller loads pretrained tensors into it."""
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        return EncoderNetwork(SIZES[settings.size])


def _projection(settings: EncoderTraining) -> nn.Linear:
    """E_b. Square it starts as the identity: 256 -> 128 leaves half of the indexed directions untrained."""
    layer: nn.Linear = torch.nn.utils.skip_init(nn.Linear, EMBEDDING_DIM, settings.projected)  # type: ignore[no-untyped-call]
    if settings.projected == EMBEDDING_DIM:
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
        return layer
    # its own generator: the global one is shared by the workers of a process
    generator = torch.Generator().manual_seed(settings.seed + 1)
    for tensor in (layer.weight, layer.bias):
        nn.init.uniform_(tensor, -(EMBEDDING_DIM**-0.5), EMBEDDING_DIM**-0.5, generator=generator)
    return layer


def _components(network: EncoderNetwork) -> list[Tensor]:
    return [] if network.embedding is None else [network.embedding.components_DC]


def _embedding(network: EncoderNetwork, image_B3HW: Tensor) -> Tensor:
    """z: the FC's own output in the paper, whose E_b follows it; the unit embedding in the starter."""
    top, _ = network.trunk((image_B3HW - network.mean_C11) / network.deviation_C11)
    z_BD: Tensor = top if network.embedding is None else network.embedding(learnable_gem(top))
    return z_BD


def learnable_gem(features_BCHW: Tensor) -> Tensor:
    """``backbones.gem`` with a gradient everywhere [B, C].

    A channel that is 0 all over (ReLU leaves many) has the slope of a cube root at 0: infinity times 0, NaN for all.
    """
    mean_BC = (features_BCHW * features_BCHW * features_BCHW).mean((2, 3))
    return mean_BC.clamp_min(GEM_MIN).pow(1.0 / 3.0)


def rate(settings: EncoderTraining, t: int) -> float:
    """Learning rate of step ``t``: down by ``decay`` after each share of the run (epochs 12 and 18 of 20)."""
    passed = sum(t >= share * settings.steps for share in settings.decay_at)
    return settings.rate * settings.decay**passed


@torch.inference_mode()
def validate(network: EncoderNetwork, batches: list[GroupBatch]) -> dict[str, float]:
    """Share of views whose nearest clean original, among all of the batches', is their own: benign and manipulated.

    ``score`` is the mean margin of the cosine, own original less the nearest other: on few photographs nearly every
    view is right, and the shares no longer tell checkpoints apart.
    """
    device = network.mean_C11.device
    batches = [moved(batch, device) for batch in batches]
    clean_ND = torch.cat([network(batch.clean_G3HW)[0] for batch in batches])
    photograph_N = torch.cat([batch.photograph_G for batch in batches])
    right: list[Tensor] = []
    margins: list[Tensor] = []
    for batch in batches:
        cosine_BN = network(batch.view_B3HW)[0] @ clean_ND.T
        own_BN = photograph_N[None] == batch.photograph_B[:, None]
        margin_B = cosine_BN.masked_fill(~own_BN, -1).amax(1) - cosine_BN.masked_fill(own_BN, -1).amax(1)
        margins.append(margin_B)
        right.append((margin_B > 0).float().view(-1, 2, 2).mean(2))
    benign, manipulated = torch.cat(right).mean(0).tolist()
    return {"first_benign": benign, "first_both": manipulated, "score": float(torch.cat(margins).mean())}
