"""The finder as a whole, for one process: the objects of a picture, and whether a hit by one of them gave it.

Plain and synchronous, on one thread. Ingesting asks for ``objects``; a query is described, searched for by the shards,
and its hits are verified. Shape letters: H, W pixels; C channels; V views; O objects; boxes are [x0, y0, x1, y1] in
pixels of the working copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stemma import clones, splice
from stemma.config import ObjectSettings
from stemma.errors import NotFound
from stemma.flow import Described, Float, ObjectHit, Objects
from stemma.networks import golden, weights
from stemma.networks.detector import Detector, regions
from stemma.networks.objects import ObjectEncoder, large
from stemma.networks.weights import ObjectsCard
from stemma.vision.decode import read_working_copy
from stemma.vision.geometry import Map33, Picture


def folder_of(settings: ObjectSettings, encoder_weights: str | None) -> str | None:
    """The folder of the objects' weights: the one set, else the encoder's own."""
    return settings.weights or encoder_weights


def card_for(settings: ObjectSettings, encoder_weights: str | None) -> ObjectsCard | None:
    """The card of the objects' weights that belong to this encoder. None where nobody named any and there are none:
    pictures are then stored without objects, and have no donors. Raises ``NotFound`` and ``Corrupt`` for a folder that
    was named and cannot be read."""
    try:
        card = weights.objects_card(folder_of(settings, encoder_weights))
    except NotFound:
        if settings.weights is not None:
            raise
        return None
    if settings.weights is None and card.encoder != weights.card(encoder_weights).digest:
        return None
    return card


def weights_for(settings: ObjectSettings, encoder_weights: str | None) -> str | None:
    """What objects made with these settings are known by (``weights.objects_digest``); None as ``card_for``."""
    card = card_for(settings, encoder_weights)
    return None if card is None else weights.objects_digest(card, weights.detector_card(settings.weights))


class Finder:
    """Finds, embeds and verifies objects."""

    def __init__(self, detector: Detector, encoder: ObjectEncoder, *, objects_max: int) -> None:
        self._detector, self._encoder = detector, encoder
        self._objects_max = objects_max
        self.judged_by(encoder.card)

    @classmethod
    def load(cls, settings: ObjectSettings, encoder_weights: str | None = None) -> Finder:
        """The networks of ``settings`` on the trunk of ``encoder_weights``; raises as ``Detector.load`` and
        ``ObjectEncoder.load`` do."""
        folder = folder_of(settings, encoder_weights)
        encoder = ObjectEncoder.load(settings.model_copy(update={"weights": folder}), encoder_weights)
        return cls(Detector.load(settings), encoder, objects_max=settings.objects_max)

    @classmethod
    def checked(cls, settings: ObjectSettings, encoder_weights: str | None = None) -> Finder:
        """As ``load``, for what takes traffic. Raises ``Corrupt`` where the networks do not give the golden objects
        that the weights bring."""
        finder, made_by = cls.load(settings, encoder_weights), weights_for(settings, encoder_weights)
        assert made_by is not None
        finders = golden.Finders(finder._detector, finder._encoder, made_by)
        golden.check_objects(finders, folder_of(settings, encoder_weights))
        return finder

    @property
    def card(self) -> ObjectsCard:
        return self._encoder.card

    def judged_by(self, card: ObjectsCard) -> None:
        """Take from this card how probable a donor is."""
        self._chances = splice.Chances.fitted(card.donor, card.donor_laid)

    def objects(self, rgb_HWC: Picture) -> Objects:
        """What a stored picture is found by: its objects, best first, and the whole of it.

        It is looked at closely: it is stored once, and an object without a box is never found.
        """
        box_O4, score_O = regions(rgb_HWC, self._detector, self._objects_max, closely=True)
        box_O4 = _within(box_O4, rgb_HWC)
        kept_O = large(box_O4)
        box_O4, score_O = box_O4[kept_O][: self._objects_max], score_O[kept_O][: self._objects_max]
        return self._encoder.embed(rgb_HWC, box_O4, score_O)

    def describe(self, rgb_HWC: Picture, box_O4: Float | None = None) -> Described:
        """What is searched for: the given boxes alone, or without any the objects of the picture.

        Boxes under 32 px are left out: they match nothing. So is the whole of the picture: it resembles other scenes,
        and with it the donor was among 20 in .77 of 79 splices where with the object's box alone it was in .86.
        """
        if box_O4 is None:
            box_O4, _ = regions(rgb_HWC, self._detector, splice.QUERY_BOXES_MAX)
        box_O4 = _within(np.asarray(box_O4, np.float32).reshape(-1, 4), rgb_HWC)
        box_O4 = box_O4[large(box_O4)][: splice.QUERY_BOXES_MAX]
        embedding_VOD = self._encoder.views(rgb_HWC, box_O4)
        return Described(
            box_O4=box_O4,
            embedding_VOD=embedding_VOD,
            hubness_VO=splice.hubness(embedding_VOD, self._encoder.background_ND, self.card.scale),
        )

    def verify(
        self, rgb_HWC: Picture, described: Described, hits: Sequence[ObjectHit], donors: Sequence[bytes]
    ) -> list[splice.Donor]:
        """Each hit's own object matched with the query's, the likeliest donor first; ``donors`` are the hits' working
        copies. Raises ``Corrupt`` for one that cannot be read."""
        return self.verify_pictures(rgb_HWC, described, hits, lambda place: read_working_copy(donors[place]))

    def verify_pictures(
        self, rgb_HWC: Picture, described: Described, hits: Sequence[ObjectHit], picture_of: splice.PictureOf
    ) -> list[splice.Donor]:
        """As ``verify``, of working copies that are decoded."""
        return splice.verified(
            splice.Query(rgb_HWC, described.box_O4, self._encoder.cells),
            hits,
            picture_of,
            cells_of=self._encoder.cells,
            chances=self._chances,
            hubness_VO=described.hubness_VO,
        )

    def clones(self, rgb_HWC: Picture, box_O4: Float, host: bytes, transform_33: Map33) -> list[clones.Clone]:
        """Those of the boxes that show another place of the host; ``transform_33`` lays the query over the host."""
        return clones.find(rgb_HWC, box_O4, read_working_copy(host), transform_33)


def _within(box_O4: Float, rgb_HWC: Picture) -> Float:
    """The parts of boxes that lie in the picture."""
    height, width = rgb_HWC.shape[:2]
    return np.clip(box_O4, 0, np.array([width, height] * 2, np.float32)).astype(np.float32)
