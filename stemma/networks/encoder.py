"""The encoder: a picture becomes one int8 embedding and 14 x 14 int8 cells, the same bits whatever stands beside it.

Shape letters: B pictures; V views (0 upright, 1 mirrored); H, W rows and columns; C channels; D embedding (256);
N cells (14 x 14 = 196, row-major); F features of a cell (32).

Two sizes of one family (``EncoderNetwork``): ``starter`` is EfficientNet-Lite0, GeM of its 1280 features, centred, PCA
to 256; ``paper`` is ResNet50 with one FC to 256 (DIC 3.1). Cells are the stride-16 stage of either, centred, PCA to 32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from stemma.config import EncoderSettings
from stemma.errors import BadRequest, Corrupt
from stemma.flow import CELL_COUNT, CELL_DIM, EMBEDDING_DIM, Encoded
from stemma.networks import weights as weights_files
from stemma.networks.backbones import LITE0_CELL_CHANNELS, LITE0_FEATURES, RESNET_CELL_CHANNELS, Lite0, ResNet50, gem
from stemma.networks.featureless import is_featureless

Picture = NDArray[np.uint8]

INPUT_SIDE_PX = 224
INT8_MAX = 127
NORM_MIN = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What differs between the two sizes. Input is (x - mean) / deviation with x in 0..255, per channel."""

    name: Literal["starter", "paper"]
    features: int
    cell_channels: int
    mean_C: tuple[float, float, float]
    deviation_C: tuple[float, float, float]


STARTER = Size(
    name="starter",
    features=LITE0_FEATURES,
    cell_channels=LITE0_CELL_CHANNELS,
    mean_C=(127.0, 127.0, 127.0),
    deviation_C=(128.0, 128.0, 128.0),
)
PAPER = Size(
    name="paper",
    features=EMBEDDING_DIM,
    cell_channels=RESNET_CELL_CHANNELS,
    mean_C=(123.675, 116.28, 103.53),
    deviation_C=(58.395, 57.12, 57.375),
)
SIZES: dict[str, Size] = {size.name: size for size in (STARTER, PAPER)}


class Projection(nn.Module):
    """Centre, project on principal directions, L2-normalise: (x - mean) @ components.T / norm. Nothing is learned."""

    mean_C: Tensor
    components_DC: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("mean_C", torch.zeros(inputs))
        self.register_buffer("components_DC", torch.zeros(outputs, inputs))

    def forward(self, x_C: Tensor) -> Tensor:
        # the floor keeps a vector that equals the mean at zero instead of NaN
        return functional.normalize((x_C - self.mean_C) @ self.components_DC.T, dim=-1, eps=NORM_MIN)


class EncoderNetwork(nn.Module):
    """image_B3HW float32 in 0..255 -> (unit embeddings [B, 256], unit cells [B, 196, 32])."""

    mean_C11: Tensor
    deviation_C11: Tensor

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.trunk: Lite0 | ResNet50 = Lite0() if size.name == "starter" else ResNet50(EMBEDDING_DIM)
        self.cells = Projection(size.cell_channels, CELL_DIM)
        # the paper's FC is its projection already
        self.embedding = Projection(size.features, EMBEDDING_DIM) if size.name == "starter" else None
        for name, values in (("mean_C11", size.mean_C), ("deviation_C11", size.deviation_C)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, image_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        pooled_BC, cells_BCHW = self.pooled(image_B3HW)
        embedding_BD = (
            functional.normalize(pooled_BC, eps=NORM_MIN) if self.embedding is None else self.embedding(pooled_BC)
        )
        cells_BNF: Tensor = self.cells(cells_BCHW.flatten(2).transpose(1, 2))
        return embedding_BD, cells_BNF

    def pooled(self, image_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Before any projection: pooled features [B, 1280] (paper: the FC's output [B, 256]), cells [B, C, 14, 14]."""
        top, cells_BCHW = self.trunk((image_B3HW - self.mean_C11) / self.deviation_C11)
        return (top if self.embedding is None else gem(top)), cells_BCHW


def squash(rgb_HWC: Picture) -> Picture:
    """The picture at 224 x 224, aspect given up: a crop would throw away edited borders (DIC 3.1).

    Pillow's bilinear filter widens with the reduction, so it does not alias. Against OpenCV's area averaging it found
    .872 / .866 of 501 benign queries of the training photographs first (.880 / .868 of 800 of the calibration ones).
    """
    side = (INPUT_SIDE_PX, INPUT_SIDE_PX)
    return np.array(Image.fromarray(rgb_HWC).resize(side, Image.Resampling.BILINEAR))


def quantise(unit: NDArray[np.float32], scale: float) -> NDArray[np.int8]:
    """int8 of unit vectors under one global scale; the few components beyond 127 / scale are clipped."""
    rounded: NDArray[np.float32] = np.rint(unit * scale)
    return np.clip(rounded, -INT8_MAX, INT8_MAX).astype(np.int8)


class Encoder:
    """Encodes pictures, plain and synchronous, on one intra-op thread.

    On the CPU every view is a forward pass of its own: a batch of another size would take other code paths and give
    other last bits, and on one core it is no faster (23.6 ms a picture at 8, 20.0 alone). On a GPU all passes have
    ``batch_images_max`` places, the empty ones zero.
    """

    def __init__(
        self, network: EncoderNetwork, card: weights_files.Card, *, device: str = "cpu", batch: int = 1
    ) -> None:
        self.card = card
        self.weights = card.digest
        self._device = torch.device(device)
        self._places = 1 if self._device.type == "cpu" else batch
        network = network.eval()
        if isinstance(network.trunk, Lite0):
            network.trunk.fold()
        self._network = network.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def load(cls, settings: EncoderSettings) -> Encoder:
        """The encoder of ``settings``; the process computes on one intra-op thread from here on.

        Raises ``NotFound`` and ``Corrupt`` for weights that are missing or not what their card says, ``BadRequest``
        when they belong to another size.
        """
        card, tensors = weights_files.read_tensors(settings.weights)
        if card.size != settings.size:
            raise BadRequest(
                f"encoder.size is {settings.size}, but these weights are for {card.size}", subject=card.name
            )
        network = EncoderNetwork(SIZES[settings.size])
        fill(network, tensors, subject=card.name)
        return cls(network, card, device=settings.device, batch=settings.batch_images_max)

    def encode(self, rgb_HWC: Picture, *, mirrored: bool) -> Encoded:
        """Embedding and cells of one picture, uint8 [H, W, 3]; with ``mirrored`` those of its mirror image too (V = 2).

        Raises ``ValueError`` for anything but a uint8 RGB picture.
        """
        return self.encode_batch([rgb_HWC], mirrored=mirrored)[0]

    def encode_batch(self, pictures: Sequence[Picture], *, mirrored: bool) -> list[Encoded]:
        """As ``encode`` for each picture, with the same bits as alone."""
        views = [view for picture in pictures for view in _views(picture, mirrored)]
        inputs = [squash(view) for view in views]
        embedding_BD, cells_BNF = self._forward(inputs)
        step = 2 if mirrored else 1
        return [
            Encoded(
                embedding_VD=embedding_BD[i : i + step],
                cells_VNF=cells_BNF[i : i + step],
                featureless=is_featureless(inputs[i], cells_BNF[i]),
                weights=self.weights,
            )
            for i in range(0, len(views), step)
        ]

    def _forward(self, inputs: list[Picture]) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
        embedding_BD = np.empty((len(inputs), EMBEDDING_DIM), np.int8)
        cells_BNF = np.empty((len(inputs), CELL_COUNT, CELL_DIM), np.int8)
        for start in range(0, len(inputs), self._places):
            part = inputs[start : start + self._places]
            stop = start + len(part)
            embedding, cells = self._pass(part)
            embedding_BD[start:stop] = quantise(embedding[: len(part)], self.card.embedding_scale)
            cells_BNF[start:stop] = quantise(cells[: len(part)], self.card.cells_scale)
        return embedding_BD, cells_BNF

    def _pass(self, part: list[Picture]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        image_BHWC = np.zeros((self._places, INPUT_SIDE_PX, INPUT_SIDE_PX, 3), np.uint8)
        image_BHWC[: len(part)] = part
        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)
        with torch.inference_mode():
            image_B3HW = torch.from_numpy(image_BHWC).to(self._device).permute(0, 3, 1, 2).float()
            embedding_BD, cells_BNF = self._network(image_B3HW)
            return embedding_BD.cpu().numpy(), cells_BNF.cpu().numpy()


def _views(picture: Picture, mirrored: bool) -> list[Picture]:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or picture.size == 0:
        raise ValueError(f"a picture is uint8 [H, W, 3], not {picture.dtype} {list(picture.shape)}")
    return [picture, np.ascontiguousarray(picture[:, ::-1])] if mirrored else [picture]


def fill(network: EncoderNetwork, tensors: weights_files.Tensors, *, subject: str) -> None:
    """Load tensors into a network. Raises ``Corrupt`` when names or shapes do not fit."""
    # torch counts the batches that BatchNorm has seen; no checkpoint of ours carries that
    counted = {name for name in network.state_dict() if name.endswith("num_batches_tracked")}
    try:
        missing, unexpected = network.load_state_dict(
            {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, strict=False
        )
    except RuntimeError as error:
        raise Corrupt(f"the weights do not fit the network: {error}", subject=subject) from error
    if unexpected or set(missing) - counted:
        raise Corrupt(f"the weights lack {sorted(set(missing) - counted)} or bring {unexpected}", subject=subject)
