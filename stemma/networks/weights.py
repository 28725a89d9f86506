"""Weights: a folder with ``encoder.safetensors``, ``card.json`` and codecs, known by the digest of the network file.

The digest covers the tensors and the two quantisation scales, that is everything which decides what a stored row means.
The thresholds and figures on the card may be fitted anew without making a collection's rows foreign.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stemma.errors import Corrupt, NotFound

SHIPPED = Path(__file__).resolve().parent.parent / "weights"
DEFAULT = "starter"
CARD_FILE = "card.json"
ENCODER_FILE = "encoder.safetensors"
CODEC_FOLDER = "codec"

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


def card(folder: str | Path | None = None) -> Card:
    """The card of the weights in ``folder``; ``None`` means those shipped.

    Raises ``NotFound`` where there is no card, ``Corrupt`` for one that cannot be read.
    """
    path = resolve(folder) / CARD_FILE
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFound(f"no weights in {path.parent}: it has no {CARD_FILE}", subject=str(path.parent)) from error
    except (OSError, ValueError) as error:
        raise Corrupt(f"the card cannot be read: {error}; take the folder anew", subject=str(path)) from error
    return _parse(body, path)


def _parse(body: Any, path: Path) -> Card:
    known = {entry.name for entry in fields(Card)}
    try:
        extra = sorted(set(body) - known)
        if extra:
            raise ValueError(f"unknown fields {', '.join(extra)}")
        points = tuple((float(score), float(probability)) for score, probability in body["calibration"])
        if any(a[0] >= b[0] or a[1] > b[1] for a, b in itertools.pairwise(points)):
            raise ValueError("the calibration does not rise")
        lists = {name: tuple(body.get(name, ())) for name in ("licences", "limits")}
        return Card(**{**body, **lists, "calibration": points})
    except (TypeError, ValueError, KeyError) as error:
        raise Corrupt(f"the card does not fit this version: {error}", subject=str(path)) from error


def write_card(folder: Path, entry: Card) -> None:
    """Write ``card.json``; figures and lists stay readable by a person."""
    text = json.dumps(asdict(entry), indent=1, ensure_ascii=False)
    (folder / CARD_FILE).write_text(text + "\n", encoding="utf-8")


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
    # a query that never encodes (``stemma status``) must not pay for this import
    from safetensors.numpy import load

    entry, path = card(folder), resolve(folder) / ENCODER_FILE
    try:
        body = path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"the weights have a card but no {ENCODER_FILE}", subject=str(path)) from error
    if digest_of(body) != entry.digest:
        raise Corrupt(
            f"{ENCODER_FILE} is {digest_of(body)[:12]}, its card says {entry.digest[:12]}; take the folder anew",
            subject=str(path),
        )
    return entry, {name: _widen(tensor) for name, tensor in load(body).items()}


def _widen(tensor: NDArray[Any]) -> NDArray[Any]:
    return tensor.astype(np.float32) if np.issubdtype(tensor.dtype, np.floating) else tensor


def write_tensors(folder: Path, tensors: Tensors, *, embedding_scale: float, cells_scale: float) -> str:
    """Write ``encoder.safetensors`` and return its digest; the scales go into its header, under the digest."""
    from safetensors.numpy import save

    scales = {"embedding_scale": repr(embedding_scale), "cells_scale": repr(cells_scale)}
    # safetensors writes an array's memory as it lies: a transposed one would come back scrambled, without a word
    rows = {name: np.ascontiguousarray(tensor) for name, tensor in sorted(tensors.items())}
    body = save(rows, metadata=scales)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ENCODER_FILE).write_bytes(body)
    return digest_of(body)


def digest_of(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
