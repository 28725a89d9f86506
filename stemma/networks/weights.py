"""Weights: a folder of networks, each a safetensors file with a card that holds its digest, and codecs.

``encoder.safetensors`` with ``card.json``; ``comparator``, ``flow``, ``detector`` and ``objects``, each
``.safetensors`` with its ``.json``. A collection is known by the digest of its encoder alone: it covers the tensors and
the two quantisation scales, that is everything which decides what a stored row means. The thresholds and figures on the
cards may be fitted anew, and the comparator replaced, without making a collection's rows foreign.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from stemma.errors import Corrupt, NotFound

SHIPPED = Path(__file__).resolve().parent.parent / "weights"
DEFAULT = "starter"
CARD_FILE = "card.json"
ENCODER_FILE = "encoder.safetensors"
COMPARATOR_CARD_FILE = "comparator.json"
COMPARATOR_FILE = "comparator.safetensors"
FLOW_CARD_FILE = "flow.json"
FLOW_FILE = "flow.safetensors"
DETECTOR_CARD_FILE = "detector.json"
DETECTOR_FILE = "detector.safetensors"
OBJECTS_CARD_FILE = "objects.json"
OBJECTS_FILE = "objects.safetensors"
CODEC_FOLDER = "codec"
SIDE_STEP_PX = 16

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What is known of some weights; ``card.json`` holds these fields."""

    name: str
    size: str
    """``starter`` or ``paper``: which network the tensors belong to."""
    digest: str
    """Hex SHA-256 of ``encoder.safetensors``; stored with every row it made."""
    embedding_scale: float
    """int8 = round(scale x component of a unit vector), one scale for all, clipped at 127."""
    cells_scale: float
    match_threshold: float
    """An original is found when its match score is at least this."""
    calibration: tuple[tuple[float, float], ...]
    """(match score, probability that the best candidate is the right original), scores rising; linear between."""
    what: str = ""
    data: str = ""
    command: str = ""
    seed: int = 0
    licences: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
    """Measured on the calibration photographs: shares with n and 95% intervals."""

    def match_probability(self, score: float) -> float:
        """Calibrated probability that the best verified candidate, at this score, is the right original."""
        scores = [point[0] for point in self.calibration]
        if not scores or score <= scores[0]:
            return self.calibration[0][1] if scores else 0.0
        right = bisect.bisect_left(scores, score)
        if right == len(scores):
            return self.calibration[-1][1]
        (x0, p0), (x1, p1) = self.calibration[right - 1 : right + 1]
        return p0 + (p1 - p0) * (score - x0) / (x1 - x0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparatorCard:
    """What is known of a comparator's weights; ``comparator.json`` holds these fields."""

    name: str
    size: str
    """``starter`` or ``paper``."""
    digest: str
    """Hex SHA-256 of ``comparator.safetensors``."""
    temperature: float
    """The logits are divided by it before the softmax."""
    margin: float
    """A found original whose |P(manip) - P(benign)| is less than this share of their sum is inconclusive."""
    distinct_min: float
    """A candidate whose P(distinct) is at least this is no original."""
    heatmap_min: float
    """Probability from which on a place of the heatmap is called changed (regions, IoU)."""
    side_px: int = 160
    """Square in which a pair is compared: the one that it was trained at."""
    what: str = ""
    data: str = ""
    command: str = ""
    seed: int = 0
    licences: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"the temperature is {self.temperature}, not above 0")
        if self.side_px <= 0 or self.side_px % SIDE_STEP_PX:
            raise ValueError(f"side_px is {self.side_px}, no multiple of {SIDE_STEP_PX}")
        for name in ("margin", "distinct_min", "heatmap_min"):
            share = getattr(self, name)
            if not isinstance(share, (int, float)) or not 0 <= share <= 1:
                raise ValueError(f"{name} is {share}, not within 0..1")


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowCard:
    """What is known of the dense flow's weights; ``flow.json`` holds these fields."""

    name: str
    size: str
    """``small`` or ``large``: which RAFT."""
    digest: str
    """Hex SHA-256 of ``flow.safetensors``."""
    what: str = ""
    origin: str = ""
    licences: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorCard:
    """What is known of a detector's weights; ``detector.json`` holds these fields."""

    name: str
    size: str
    """``starter`` or ``paper``."""
    digest: str
    """Hex SHA-256 of ``detector.safetensors``."""
    what: str = ""
    data: str = ""
    command: str = ""
    seed: int = 0
    licences: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectsCard:
    """What is known of the embedding of objects; ``objects.json`` holds these fields."""

    name: str
    size: str
    digest: str
    """Hex SHA-256 of ``objects.safetensors``: projections on features of the encoder's trunk."""
    encoder: str
    """Digest of the encoder's weights that they were fitted on."""
    scale: float
    """int8 = round(scale x component of a unit vector), clipped at 127."""
    donor: tuple[float, ...] = (-6.0, 0.35, -1.0)
    """Bias, weight of the match and of the damped distance: logistic probability that a verified hit is the donor."""
    donor_min: float = 1.0
    """Probability from which on a donor is shown; 1: not fitted yet, none is."""
    what: str = ""
    data: str = ""
    command: str = ""
    seed: int = 0
    licences: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)


AnyCard = TypeVar("AnyCard", Card, ComparatorCard, FlowCard, DetectorCard, ObjectsCard)


def card(folder: str | Path | None = None) -> Card:
    """The encoder's card of the weights in ``folder``; ``None`` means those shipped.

    Raises ``NotFound`` where there is no card, ``Corrupt`` for one that cannot be read.
    """
    return _read_card(resolve(folder) / CARD_FILE, Card)


def comparator_card(folder: str | Path | None = None) -> ComparatorCard:
    """The comparator's card of the weights in ``folder``; raises as ``card`` does."""
    return _read_card(resolve(folder) / COMPARATOR_CARD_FILE, ComparatorCard)


def flow_card(folder: str | Path | None = None) -> FlowCard:
    """The flow's card of the weights in ``folder``; raises as ``card`` does."""
    return _read_card(resolve(folder) / FLOW_CARD_FILE, FlowCard)


def detector_card(folder: str | Path | None = None) -> DetectorCard:
    """The detector's card of the weights in ``folder``; raises as ``card`` does."""
    return _read_card(resolve(folder) / DETECTOR_CARD_FILE, DetectorCard)


def objects_card(folder: str | Path | None = None) -> ObjectsCard:
    """The objects' card of the weights in ``folder``; raises as ``card`` does."""
    return _read_card(resolve(folder) / OBJECTS_CARD_FILE, ObjectsCard)


def _read_card(path: Path, kind: type[AnyCard]) -> AnyCard:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFound(f"no such weights in {path.parent}: it has no {path.name}", subject=str(path.parent)) from error
    except (OSError, ValueError) as error:
        raise Corrupt(f"the card cannot be read: {error}; take the folder anew", subject=str(path)) from error
    known = {entry.name for entry in fields(kind)}
    try:
        extra = sorted(set(body) - known)
        if extra:
            raise ValueError(f"unknown fields {', '.join(extra)}")
        lists: dict[str, Any] = {name: tuple(body.get(name, ())) for name in ("licences", "limits")}
        if kind is Card:
            lists["calibration"] = _points(body["calibration"])
        if kind is ObjectsCard and "donor" in body:
            lists["donor"] = tuple(float(value) for value in body["donor"])
        return kind(**{**body, **lists})
    except (TypeError, ValueError, KeyError) as error:
        raise Corrupt(f"the card does not fit this version: {error}", subject=str(path)) from error


def _points(rows: Any) -> tuple[tuple[float, float], ...]:
    points = tuple((float(score), float(probability)) for score, probability in rows)
    if any(a[0] >= b[0] or a[1] > b[1] for a, b in itertools.pairwise(points)):
        raise ValueError("the calibration does not rise")
    return points


def write_card(folder: Path, entry: Card | ComparatorCard | FlowCard | DetectorCard | ObjectsCard) -> None:
    """Write the card's own file into ``folder``; figures and lists stay readable by a person."""
    text = json.dumps(asdict(entry), indent=1, ensure_ascii=False)
    (folder / _CARD_FILES[type(entry)]).write_text(text + "\n", encoding="utf-8")


_CARD_FILES: dict[type[Any], str] = {
    Card: CARD_FILE,
    ComparatorCard: COMPARATOR_CARD_FILE,
    FlowCard: FLOW_CARD_FILE,
    DetectorCard: DETECTOR_CARD_FILE,
    ObjectsCard: OBJECTS_CARD_FILE,
}


def resolve(folder: str | Path | None) -> Path:
    """The folder meant: itself, or the shipped default for ``None``."""
    return SHIPPED / DEFAULT if folder is None else Path(folder)


def available(root: Path = SHIPPED) -> tuple[Card, ...]:
    """The cards of all weights under ``root``, by name."""
    return tuple(card(path.parent) for path in sorted(root.glob(f"*/{CARD_FILE}")))


def find(digest: str, root: Path = SHIPPED) -> Path:
    """The folder under ``root`` that holds the weights a collection was made with. Raises ``NotFound``."""
    for path in sorted(root.glob(f"*/{CARD_FILE}")):
        if card(path.parent).digest == digest:
            return path.parent
    raise NotFound(f"no weights {digest[:12]} under {root}; give their folder as encoder.weights", subject=digest)


def objects_digest(objects: ObjectsCard, detector: DetectorCard) -> str:
    """What stored objects are known by: everything that decides where they lie and what their embeddings mean."""
    return digest_of("\n".join((objects.digest, objects.encoder, repr(objects.scale), detector.digest)).encode())


def codec_folder(name: str, folder: str | Path | None = None) -> Path:
    """Where the codec called ``name`` (``opq``) of these weights lies. Raises ``NotFound``."""
    path = resolve(folder) / CODEC_FOLDER / name
    if not path.is_dir():
        raise NotFound(f"these weights bring no codec {name!r}; train one with stemma train codec", subject=str(path))
    return path


def read_tensors(folder: str | Path | None = None) -> tuple[Card, Tensors]:
    """The card and every tensor of ``encoder.safetensors``, floats as float32.

    Raises ``NotFound``, and ``Corrupt`` when the file is not the one the card describes.
    """
    entry = card(folder)
    return entry, _read_file(resolve(folder) / ENCODER_FILE, entry.digest)


def read_comparator(folder: str | Path | None = None) -> tuple[ComparatorCard, Tensors]:
    """The card and every tensor of ``comparator.safetensors``; as ``read_tensors``."""
    entry = comparator_card(folder)
    return entry, _read_file(resolve(folder) / COMPARATOR_FILE, entry.digest)


def read_flow(folder: str | Path | None = None) -> tuple[FlowCard, Tensors]:
    """The card and every tensor of ``flow.safetensors``, under torchvision's names; as ``read_tensors``."""
    entry = flow_card(folder)
    return entry, _read_file(resolve(folder) / FLOW_FILE, entry.digest)


def read_detector(folder: str | Path | None = None) -> tuple[DetectorCard, Tensors]:
    """The card and every tensor of ``detector.safetensors``; as ``read_tensors``."""
    entry = detector_card(folder)
    return entry, _read_file(resolve(folder) / DETECTOR_FILE, entry.digest)


def read_objects(folder: str | Path | None = None) -> tuple[ObjectsCard, Tensors]:
    """The card and every tensor of ``objects.safetensors``; as ``read_tensors``."""
    entry = objects_card(folder)
    return entry, _read_file(resolve(folder) / OBJECTS_FILE, entry.digest)


def _read_file(path: Path, digest: str) -> Tensors:
    # a query that never encodes (``stemma status``) must not pay for this import
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        body = path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"the weights have a card but no {path.name}", subject=str(path)) from error
    if digest_of(body) != digest:
        raise Corrupt(
            f"{path.name} is {digest_of(body)[:12]}, its card says {digest[:12]}; take the folder anew",
            subject=str(path),
        )
    try:
        return {name: _widen(tensor) for name, tensor in load(body).items()}
    except SafetensorError as error:
        raise Corrupt(f"{path.name} is no safetensors file: {error}", subject=str(path)) from error


def _widen(tensor: NDArray[Any]) -> NDArray[Any]:
    return tensor.astype(np.float32) if np.issubdtype(tensor.dtype, np.floating) else tensor


def write_tensors(folder: Path, tensors: Tensors, *, embedding_scale: float, cells_scale: float) -> str:
    """Write ``encoder.safetensors`` and return its digest; the scales go into its header, under the digest."""
    scales = {"embedding_scale": repr(embedding_scale), "cells_scale": repr(cells_scale)}
    return _write_file(folder / ENCODER_FILE, tensors, scales)


def write_comparator(folder: Path, tensors: Tensors) -> str:
    """Write ``comparator.safetensors`` as it is given (float16 ships) and return its digest for the card."""
    return _write_file(folder / COMPARATOR_FILE, tensors)


def write_flow(folder: Path, tensors: Tensors) -> str:
    """Write ``flow.safetensors``, names as torchvision's, and return its digest for the card."""
    return _write_file(folder / FLOW_FILE, tensors)


def write_detector(folder: Path, tensors: Tensors) -> str:
    """Write ``detector.safetensors`` as it is given (float16 ships) and return its digest for the card."""
    return _write_file(folder / DETECTOR_FILE, tensors)


def write_objects(folder: Path, tensors: Tensors) -> str:
    """Write ``objects.safetensors`` and return its digest for the card."""
    return _write_file(folder / OBJECTS_FILE, tensors)


def _write_file(path: Path, tensors: Tensors, header: dict[str, str] | None = None) -> str:
    from safetensors.numpy import save

    # safetensors writes an array's memory as it lies: a transposed one would come back scrambled, without a word
    rows = {name: np.asarray(tensor, order="C") for name, tensor in sorted(tensors.items())}
    body = save(rows, metadata=header)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return digest_of(body)


def narrow(tensors: Mapping[str, NDArray[Any]]) -> Tensors:
    """Floats as float16, which is what ships; counters stay as they are."""
    return {
        name: tensor.astype(np.float16) if np.issubdtype(tensor.dtype, np.floating) else tensor
        for name, tensor in tensors.items()
    }


def digest_of(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
