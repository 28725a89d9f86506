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
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from stemma.errors import Corrupt, NotFound

SHIPPED = Path(__file__).resolve().parent.parent / "weights"
DEFAULT = "starter"
CODEC_FOLDER = "codec"
SIDE_STEP_PX = 16

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnyCard:
    """What is known of any network's weights; its card's file holds these fields, and those of its own kind."""

    name: str
    size: str
    """``starter`` or ``paper``, of the flow ``small`` or ``large``: which network the tensors belong to."""
    digest: str
    """Hex SHA-256 of the tensors' file."""
    what: str = ""
    licences: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
    """What was measured: shares with n and 95% intervals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trained(AnyCard):
    data: str = ""
    command: str = ""
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Card(_Trained):
    """The encoder's. Its digest is stored with every row that it made, and covers both scales."""

    embedding_scale: float
    """int8 = round(scale x component of a unit vector), one scale for all, clipped at 127."""
    cells_scale: float
    match_threshold: float
    """An original is found when its match score is at least this."""
    calibration: tuple[tuple[float, float], ...]
    """(match score, probability that the best candidate is the right original), scores rising; linear between."""

    def __post_init__(self) -> None:
        if any(a[0] >= b[0] or a[1] > b[1] for a, b in itertools.pairwise(self.calibration)):
            raise ValueError("the calibration does not rise")

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
class ComparatorCard(_Trained):
    """The comparator's."""

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
class FlowCard(AnyCard):
    """The dense flow's."""

    origin: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorCard(_Trained):
    """The detector's."""


DISTANCE_MAX = 4.0
"""Between unit vectors, squared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectsCard(_Trained):
    """Of the embedding of objects: projections on features of the encoder's trunk."""

    encoder: str
    """Digest of the encoder's weights that they were fitted on."""
    scale: float
    """int8 = round(scale x component of a unit vector), clipped at 127."""
    donor: tuple[float, ...] = (-6.0, 0.35, -1.0)
    """Bias, weight of the match and of the damped distance: logistic probability that a verified hit is the donor."""
    donor_laid: tuple[float, ...] = (-6.0, 0.2, -1.0)
    """The same of a hit that was laid over the query, of its match there."""
    donor_min: float = 1.0
    """Probability from which on a donor is shown; 1: not fitted yet, none is."""
    damped_max: float = DISTANCE_MAX
    """Damped distance above which a hit behind the first few is not verified."""


_TUPLES = ("licences", "limits", "calibration", "donor", "donor_laid")
_LAST = ("what", "data", "origin", "command", "seed", "licences", "limits", "figures")
"""In a card's file, behind what the networks are run by."""
C = TypeVar("C", bound=AnyCard)


@dataclass(frozen=True, slots=True)
class Part(Generic[C]):
    """One network of a folder of weights: the file of its tensors, and the card that holds the file's digest.

    ``folder`` is ``None`` for those shipped.
    """

    name: str
    kind: type[C]
    card_file: str

    @property
    def file(self) -> str:
        return f"{self.name}.safetensors"

    def there(self, folder: str | Path | None = None) -> bool:
        """Whether the folder brings this network."""
        return (resolve(folder) / self.card_file).exists()

    def card(self, folder: str | Path | None = None) -> C:
        """Raises ``NotFound`` where there is no card, ``Corrupt`` for one that cannot be read."""
        path = resolve(folder) / self.card_file
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            where = str(path.parent)
            raise NotFound(f"no such weights in {where}: it has no {path.name}", subject=where) from error
        except (OSError, ValueError) as error:
            raise Corrupt(f"the card cannot be read: {error}; take the folder anew", subject=str(path)) from error
        try:
            extra = sorted(set(body) - {entry.name for entry in fields(self.kind)})
            if extra:
                raise ValueError(f"unknown fields {', '.join(extra)}")
            return self.kind(**{name: _frozen(value) if name in _TUPLES else value for name, value in body.items()})
        except (TypeError, ValueError) as error:
            raise Corrupt(f"the card does not fit this version: {error}", subject=str(path)) from error

    def read(self, folder: str | Path | None = None) -> tuple[C, Tensors]:
        """The card and every tensor, floats as float32.

        Raises ``NotFound``, and ``Corrupt`` when the file is not the one the card describes.
        """
        entry = self.card(folder)
        return entry, _read_file(resolve(folder) / self.file, entry.digest)

    def write(self, folder: Path, tensors: Tensors, header: dict[str, str] | None = None) -> str:
        """Write the tensors as they are given (float16 ships) and return the file's digest for the card."""
        return _write_file(folder / self.file, tensors, header)


ENCODER = Part("encoder", Card, "card.json")
COMPARATOR = Part("comparator", ComparatorCard, "comparator.json")
FLOW = Part("flow", FlowCard, "flow.json")
DETECTOR = Part("detector", DetectorCard, "detector.json")
OBJECTS = Part("objects", ObjectsCard, "objects.json")
PARTS: tuple[Part[Any], ...] = (ENCODER, COMPARATOR, FLOW, DETECTOR, OBJECTS)

CARD_FILE, ENCODER_FILE = ENCODER.card_file, ENCODER.file
COMPARATOR_CARD_FILE, COMPARATOR_FILE = COMPARATOR.card_file, COMPARATOR.file
FLOW_CARD_FILE, FLOW_FILE = FLOW.card_file, FLOW.file
DETECTOR_CARD_FILE, DETECTOR_FILE = DETECTOR.card_file, DETECTOR.file
OBJECTS_CARD_FILE, OBJECTS_FILE = OBJECTS.card_file, OBJECTS.file

card, read_tensors = ENCODER.card, ENCODER.read
comparator_card, read_comparator, write_comparator = COMPARATOR.card, COMPARATOR.read, COMPARATOR.write
flow_card, read_flow, write_flow = FLOW.card, FLOW.read, FLOW.write
detector_card, read_detector, write_detector = DETECTOR.card, DETECTOR.read, DETECTOR.write
objects_card, read_objects, write_objects = OBJECTS.card, OBJECTS.read, OBJECTS.write


def write_tensors(folder: Path, tensors: Tensors, *, embedding_scale: float, cells_scale: float) -> str:
    """``ENCODER.write`` with both scales in the file's header, under the digest."""
    scales = {"embedding_scale": repr(embedding_scale), "cells_scale": repr(cells_scale)}
    return ENCODER.write(folder, tensors, scales)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def write_card(folder: Path, entry: AnyCard) -> None:
    """Write the card's own file into ``folder``; figures and lists stay readable by a person."""
    (part,) = (one for one in PARTS if one.kind is type(entry))
    place = {name: at for at, name in enumerate(_LAST)}
    body = dict(sorted(asdict(entry).items(), key=lambda pair: place.get(pair[0], -1)))
    text = json.dumps(body, indent=1, ensure_ascii=False)
    (folder / part.card_file).write_text(text + "\n", encoding="utf-8")


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
