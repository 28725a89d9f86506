"""Objects of a picture: crops of it, each through the encoder's trunk, as int8 vectors that survive being pasted.

Shape letters: V views (0 upright, 1 mirrored); O objects, the whole picture last; B crops; H, W rows and columns;
C channels; D embedding (256); P cells (8 x 8 of a crop at 128 px); F features of a cell (32). Boxes are [x0, y0, x1,
y1]: in pixels where they come in, in 0..1 of the picture's width and height in ``flow.Objects``.

An embedding is made of two parts, each a unit vector before they are weighed and projected together: GeM of the
trunk's last features (what it is), and its stride-16 map averaged over parts of the crop (how it looks, and where).
``paper`` takes OE-SIR's way (eq. 4): one pass over the picture, ROIAlign on its map, the maximum over the bins.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from stemma.config import ObjectSettings
from stemma.errors import BadRequest, Conflict, Corrupt
from stemma.flow import CELL_COUNT, CELL_DIM, OBJECT_DIM, Objects
from stemma.networks import weights as weights_files
from stemma.networks.backbones import LITE0_CELL_CHANNELS, LITE0_FEATURES, Lite0, gem
from stemma.networks.encoder import INPUT_SIDE_PX, SIZES, EncoderNetwork, Picture, Projection, fill, quantise

Boxes = NDArray[np.float32]

CROP_SIDE_PX = 128
MARGIN = 0.1
"""Share of an object's sides that its crop for local matching takes in around it."""
EMBEDDED_MARGIN = -0.05
"""The same of the crop that is embedded: what lies around a pasted object is another scene. Of 79 splices, with the
detector's boxes, the donor was among 20 in .61 with a margin of .1, in .67 with -.03 and in .66 with -.14."""
LAYOUT = 4
"""Parts of a crop, each way, over which the stride-16 map is averaged."""
LAYOUT_WEIGHT = 1.0
"""Of the layout part beside the features' part."""
STARTER_FEATURES = LITE0_FEATURES + LAYOUT * LAYOUT * LITE0_CELL_CHANNELS
PASS_CROPS = 6
"""Crops of one pass: 5.7 ms each, 9.4 alone. Over 12 they come out in other last bits."""
BOX_SIDE_PX_MIN = 8.0
OBJECT_SIDE_PX_MIN = 32.0
"""Smaller things are no objects: blown up to a crop they are smooth blobs, and all blobs match each other (scores
to 45, where other strangers stay under 20)."""
ROI_BINS = 7
ROI_SAMPLES = 2
PAPER_SIDE_PX = 1024
PAPER_STRIDE_PX = 32
NORM_MIN = 1e-6


def crop(
    rgb_HWC: Picture, box: Sequence[float] | NDArray[np.floating], side_px: int, margin: float = MARGIN
) -> Picture:
    """The object with a margin, cut at the picture's edges, squashed to a square; at least a few pixels large."""
    x0, y0, x1, y1 = crop_box(box, (rgb_HWC.shape[1], rgb_HWC.shape[0]), margin)
    cut = Image.fromarray(rgb_HWC[y0:y1, x0:x1])
    return np.array(cut.resize((side_px, side_px), Image.Resampling.BILINEAR))


def crop_box(
    box: Sequence[float] | NDArray[np.floating], size: tuple[int, int], margin: float = MARGIN
) -> tuple[int, int, int, int]:
    """The whole pixels that ``crop`` cuts out of a picture of ``size`` (width, height)."""
    sides = []
    for low, high, edge in ((box[0], box[2], size[0]), (box[1], box[3], size[1])):
        grown = max(float(high - low), BOX_SIDE_PX_MIN) * (0.5 + margin)
        middle = (float(low) + float(high)) / 2
        first = int(min(max(0, np.floor(middle - grown)), max(0, edge - BOX_SIDE_PX_MIN)))
        sides.append((first, int(max(min(edge, np.ceil(middle + grown)), min(edge, first + BOX_SIDE_PX_MIN)))))
    (x0, x1), (y0, y1) = sides
    return x0, y0, x1, y1


def large(box_O4: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which boxes [O, 4] are of objects: none of their sides under 32 px of the working copy."""
    return np.asarray((box_O4[:, 2:] - box_O4[:, :2]).min(1, initial=np.inf) >= OBJECT_SIDE_PX_MIN)


def mirrored_boxes(box_O4: Boxes, width: float) -> Boxes:
    """The boxes in the mirror image of a picture of this width."""
    x0, y0, x1, y1 = box_O4.T
    return np.stack([width - x1, y0, width - x0, y1], 1).astype(np.float32)


def starter_features(top_BCHW: Tensor, cells_BCHW: Tensor) -> Tensor:
    """[B, 1280 + 16 x 112] of a crop's maps: both parts of length 1, the second times ``LAYOUT_WEIGHT``."""
    layout_BC = functional.adaptive_avg_pool2d(cells_BCHW, LAYOUT).flatten(1)
    parts = (gem(top_BCHW), layout_BC * 1.0)
    what_BC, where_BC = (functional.normalize(part, eps=NORM_MIN) for part in parts)
    return torch.cat([what_BC, where_BC * LAYOUT_WEIGHT], 1)


def turned_features(feature_OC: NDArray[np.float32]) -> NDArray[np.float32]:
    """The starter's features of the mirrored crops, nearly: the same, with the columns of the layout turned round."""
    layout = feature_OC[:, LITE0_FEATURES:].reshape(len(feature_OC), LITE0_CELL_CHANNELS, LAYOUT, LAYOUT)
    turned_OC = layout[..., ::-1].reshape(len(feature_OC), -1)
    return np.concatenate([feature_OC[:, :LITE0_FEATURES], turned_OC], 1)


def roi_features(map_1CHW: Tensor, box_O4: Tensor, stride_px: int) -> Tensor:
    """[O, C]: ROIAlign of 7 x 7 bins on one picture's map, then the maximum over the bins (OE-SIR eq. 4)."""
    from torchvision.ops import roi_align

    bins_OCHW: Tensor = roi_align(
        map_1CHW, [box_O4], ROI_BINS, spatial_scale=1 / stride_px, sampling_ratio=ROI_SAMPLES, aligned=True
    )
    return bins_OCHW.amax((2, 3))


class ObjectEncoder:
    """Embeds objects, plain and synchronous, on one intra-op thread."""

    def __init__(
        self,
        network: EncoderNetwork,
        projection: Projection,
        card: weights_files.ObjectsCard,
        *,
        cells_scale: float,
        background_ND: NDArray[np.int8] | None = None,
        device: str = "cpu",
    ) -> None:
        network = network.eval()
        if isinstance(network.trunk, Lite0):
            network.trunk.fold()
        self.card = card
        self.background_ND = np.zeros((0, OBJECT_DIM), np.int8) if background_ND is None else background_ND
        """Objects of training photographs; how near they are says how little a hit means (``splice.hubness``)."""
        self._device, self._cells_scale = torch.device(device), cells_scale
        self._network = network.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._projection = projection.eval().to(self._device)

    @classmethod
    def load(cls, settings: ObjectSettings, encoder_weights: str | None = None) -> ObjectEncoder:
        """The objects' encoder of ``settings`` on the trunk of ``encoder_weights`` (those shipped).

        Raises ``NotFound`` and ``Corrupt`` for weights that are missing or not what their card says, ``BadRequest``
        for another size and ``Conflict`` for projections that were fitted on another trunk.
        """
        card, tensors = weights_files.read_objects(settings.weights)
        trunk_card, trunk_tensors = weights_files.read_tensors(encoder_weights)
        if not settings.size == card.size == trunk_card.size:
            raise BadRequest(
                f"objects.size is {settings.size}, but these weights are {card.size} on {trunk_card.size}",
                subject=card.name,
            )
        if card.encoder != trunk_card.digest:
            raise Conflict(
                f"these objects belong to encoder {card.encoder[:12]}, not {trunk_card.digest[:12]}", subject=card.name
            )
        network = EncoderNetwork(SIZES[settings.size])
        fill(network, trunk_tensors, subject=trunk_card.name)
        try:
            projection = Projection(tensors["mean_C"].shape[0], OBJECT_DIM)
            projection.load_state_dict({name: torch.from_numpy(tensors[name]) for name in ("mean_C", "components_DC")})
        except (KeyError, RuntimeError) as error:
            raise Corrupt(f"the weights are no projection to {OBJECT_DIM}: {error}", subject=card.name) from error
        return cls(
            network,
            projection,
            card,
            cells_scale=trunk_card.cells_scale,
            background_ND=tensors.get("background_ND"),
            device=settings.device,
        )

    def embed(self, rgb_HWC: Picture, box_O4: Boxes, score_O: NDArray[np.float32] | None = None) -> Objects:
        """The objects of one picture, in the order given, and the whole picture after them.

        ``rgb_HWC`` uint8 [H, W, 3]; ``box_O4`` in its pixels; a missing ``score_O`` is 0. The whole picture scores 1.
        """
        height, width = rgb_HWC.shape[:2]
        box_O4 = np.asarray(box_O4, np.float32).reshape(-1, 4)
        whole_14 = np.array([[0, 0, width, height]], np.float32)
        scores = np.zeros(len(box_O4), np.float32) if score_O is None else np.asarray(score_O, np.float32)
        all_O4 = np.concatenate([box_O4, whole_14])
        return Objects(
            box_O4=np.clip(all_O4 / np.array([width, height] * 2, np.float32), 0, 1).astype(np.float32),
            score_O=np.append(scores, np.float32(1)),
            embedding_OD=quantise(self._unit(self.features(rgb_HWC, all_O4)), self.card.scale),
        )

    def embed_views(self, rgb_HWC: Picture, box_O4: Boxes) -> tuple[Objects, NDArray[np.int8]]:
        """(the objects as ``embed`` gives them, their embeddings [V, O, 256]): view 1 is of the mirrored picture."""
        height, width = rgb_HWC.shape[:2]
        box_O4 = np.asarray(box_O4, np.float32).reshape(-1, 4)
        all_O4 = np.concatenate([box_O4, np.array([[0, 0, width, height]], np.float32)])
        embedding_VOD = self.views(rgb_HWC, all_O4)
        upright = Objects(
            box_O4=np.clip(all_O4 / np.array([width, height] * 2, np.float32), 0, 1).astype(np.float32),
            score_O=np.append(np.zeros(len(box_O4), np.float32), np.float32(1)),
            embedding_OD=embedding_VOD[0],
        )
        return upright, embedding_VOD

    def views(self, rgb_HWC: Picture, box_O4: Boxes) -> NDArray[np.int8]:
        """[V, O, 256] of these boxes alone, without the whole picture; view 1 is of the mirrored picture.

        The starter's mirrored view is its upright one with the layout turned round: no crop is passed twice. Of 79
        splices it finds as many donors as the mirrored picture's own features, which it resembles by .88 (cosine).
        """
        box_O4 = np.asarray(box_O4, np.float32).reshape(-1, 4)
        if not len(box_O4):
            return np.zeros((2, 0, OBJECT_DIM), np.int8)
        feature_OC = self.features(rgb_HWC, box_O4)
        if isinstance(self._network.trunk, Lite0):
            turned_OC = turned_features(feature_OC)
        else:
            turned_O4 = mirrored_boxes(box_O4, rgb_HWC.shape[1])
            turned_OC = self.features(np.ascontiguousarray(rgb_HWC[:, ::-1]), turned_O4)
        return np.stack([quantise(self._unit(each_OC), self.card.scale) for each_OC in (feature_OC, turned_OC)])

    def cells(self, rgb_HWC: Picture, box: Sequence[float] | NDArray[np.floating]) -> NDArray[np.int8]:
        """int8 [196, 32]: the encoder's cells of one object's crop at 224 px, for local verification."""
        inputs = crop(rgb_HWC, box, INPUT_SIDE_PX)
        with torch.inference_mode():
            _, cells_BCHW = self._maps(inputs[None], deep=False)
            cells_BNF: Tensor = self._network.cells(cells_BCHW.flatten(2).transpose(1, 2))
        unit = cells_BNF[0].cpu().numpy()
        assert unit.shape == (CELL_COUNT, CELL_DIM)
        return quantise(unit, self._cells_scale)

    def features(self, rgb_HWC: Picture, box_O4: Boxes) -> NDArray[np.float32]:
        """[O, C] before the projection, of boxes in pixels; for fitting it."""
        with torch.inference_mode():
            if not isinstance(self._network.trunk, Lite0):
                return self._rois(rgb_HWC, box_O4)
            parts = []
            for start in range(0, len(box_O4), PASS_CROPS):
                crops = [
                    crop(rgb_HWC, box, CROP_SIDE_PX, EMBEDDED_MARGIN) for box in box_O4[start : start + PASS_CROPS]
                ]
                top_BCHW, cells_BCHW = self._maps(np.stack(crops), deep=True)
                parts.append(starter_features(top_BCHW, cells_BCHW).cpu().numpy())
        return np.concatenate(parts)

    def _unit(self, feature_OC: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            rows_OC = torch.from_numpy(np.ascontiguousarray(feature_OC)).to(self._device)
            # one row at a time: a product of more rows may add in another order and give other last bits
            unit = [self._projection(row_C[None])[0].cpu().numpy() for row_C in rows_OC]
        return np.stack(unit)

    def _maps(self, crops_BHWC: Picture, *, deep: bool) -> tuple[Tensor, Tensor]:
        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)
        network = self._network
        image_B3HW = torch.from_numpy(crops_BHWC).to(self._device).permute(0, 3, 1, 2).float()
        image_B3HW = (image_B3HW - network.mean_C11) / network.deviation_C11
        if not deep and isinstance(network.trunk, Lite0):
            cells_BCHW: Tensor = network.trunk.cells(network.trunk.stem(image_B3HW))
            return cells_BCHW, cells_BCHW
        top, cells_BCHW = network.trunk(image_B3HW)
        return top, cells_BCHW

    def _rois(self, rgb_HWC: Picture, box_O4: Boxes) -> NDArray[np.float32]:
        """OE-SIR's own: the picture at 1024 px through conv5, ROIAlign at stride 32."""
        from stemma.vision import geometry

        height, width = rgb_HWC.shape[:2]
        share = PAPER_SIDE_PX / max(height, width)
        large_HWC = geometry.resize(rgb_HWC, (max(1, round(width * share)), max(1, round(height * share))))
        network = self._network
        image_13HW = torch.from_numpy(large_HWC).to(self._device).permute(2, 0, 1).float()[None]
        map_1CHW = network.trunk.maps((image_13HW - network.mean_C11) / network.deviation_C11)[0]
        box_O4_t = torch.from_numpy(np.asarray(box_O4 * share, np.float32)).to(self._device)
        return np.asarray(roi_features(map_1CHW, box_O4_t, PAPER_STRIDE_PX).cpu().numpy())
