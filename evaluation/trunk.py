"""The networks as the protocols take them: the trunk as a map, cells of crops, and more objects than are stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from evaluation.composites import MapOf
from evaluation.object_localization import CellsOf, Described
from evaluation.object_ranks import Describer
from stemma.config import Settings
from stemma.finder import folder_of
from stemma.flow import Bytes3, Float, Int8
from stemma.networks import weights
from stemma.networks.backbones import Lite0
from stemma.networks.detector import Detector, regions
from stemma.networks.encoder import SIZES, EncoderNetwork, fill
from stemma.networks.objects import ObjectEncoder

OBJECTS = 16
"""Boxes of a picture that OE-SIR's localization chooses from."""


def trunk_map(settings: Settings) -> MapOf:
    """The last map of the encoder's trunk [C, H/32, W/32], of a picture at the size it has: nothing is squashed."""
    torch.set_num_threads(1)
    card, tensors = weights.read_tensors(settings.encoder.weights)
    network = EncoderNetwork(SIZES[settings.encoder.size]).eval()
    fill(network, tensors, subject=card.name)
    if isinstance(network.trunk, Lite0):
        network.trunk.fold()
    last = network.trunk if isinstance(network.trunk, Lite0) else network.trunk.maps

    def map_of(rgb_HWC: Bytes3) -> Float:
        with torch.inference_mode():
            image_13HW = torch.from_numpy(np.ascontiguousarray(rgb_HWC)).permute(2, 0, 1)[None].float()
            top_1CHW, _ = last((image_13HW - network.mean_C11) / network.deviation_C11)
            found: Float = top_1CHW[0].numpy()
            return found

    return map_of


def describer(settings: Settings) -> Describer:
    """Detector and embedding of as many objects as are compared."""
    return Describer(*_objects(settings))


def boxed(settings: Settings) -> Callable[[Bytes3], Described]:
    """The objects of a picture with their boxes in its pixels, the whole of it last."""
    detector, encoder = _objects(settings)

    def describe(rgb_HWC: Bytes3) -> Described:
        height, width = rgb_HWC.shape[:2]
        objects = encoder.embed(rgb_HWC, regions(rgb_HWC, detector, OBJECTS)[0][:OBJECTS])
        box_O4 = objects.box_O4 * np.array([width, height] * 2, np.float32)
        return Described(box_O4.astype(np.float32), objects.embedding_OD)

    return describe


def cells(settings: Settings) -> CellsOf:
    """Cells of a crop, as verification takes them."""
    _, encoder = _objects(settings)

    def cells_of(rgb_HWC: Bytes3, box: Sequence[float]) -> Int8:
        return encoder.cells(rgb_HWC, box)

    return cells_of


def _objects(settings: Settings) -> tuple[Detector, ObjectEncoder]:
    folder = folder_of(settings.objects, settings.encoder.weights)
    objects = settings.objects.model_copy(update={"weights": folder})
    return Detector.load(settings.objects), ObjectEncoder.load(objects, settings.encoder.weights)
