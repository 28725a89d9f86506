"""What verification and the comparator say of queries rendered from the 200 calibration photographs.

The gallery is every photograph of train, calibrate and val, 750 in all. Of each calibration photograph come two benign
versions, one edit and two edits under the benign suite, by other seeds than training's; each is asked twice, with its
original in the gallery and with it and its near-duplicates left out. Everything goes the way of a query: int8
embeddings and cells, the exact shortlist, verification, the comparator on whatever could be the original. Candidates
are compared to the last, so that any early stop can be replayed (``training.verdicts``).

Shape letters: H, W rows and columns; Q places of a map; T thresholds; R originals; D embedding; N cells; F features.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from stemma import verdict
from stemma.flow import Encoded, Hit, Judged, Pairing, Pixels
from stemma.networks import matching
from stemma.networks.comparing import Comparator
from stemma.networks.encoder import Encoder
from stemma.vision import benign, edits, geometry
from stemma.vision.decode import working_copy
from stemma.vision.geometry import Picture
from training import split as split_files
from training import views
from training.calibrate import nearest

Kind = Literal["benign", "manip", "both"]
QUERIES: Mapping[Kind, int] = {"benign": 2, "manip": 1, "both": 2}
SEED = 20_261_124
DONORS = 8
SHORTLIST = 100
RERANK_MAX = 8
SEEN_MIN = 0.3
"""Share of an edit that the query must still show; under it neither verdict nor map has a truth (docs/facts.md)."""
SAVED_MIN, SAVED_MAX = 75, 96
"""JPEG quality at which an edit is saved."""
THRESHOLDS = np.round(np.arange(0.05, 0.96, 0.05), 2)

Shares = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One query and its truth."""

    kind: Kind
    name: str
    number: int
    rgb_HWC: Picture
    mask_HW: Picture | None
    """255 where the query shows the edit; None for a benign one."""
    hidden: bool = False
    """Too little of the edit is left to be seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One asking of a query: the ranked candidates, and what the comparator says of those that could be it."""

    hits: tuple[Hit, ...]
    judged: dict[int, Judged]
    """By row; every candidate of the first ``RERANK_MAX`` above the match threshold, and what else was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that is known of one query."""

    kind: Kind
    name: str
    number: int
    hidden: bool
    row: int
    """Of its original."""
    encoded: Encoded
    with_original: Side
    without: Side
    shown_T: Shares | None
    """By threshold: IoU of the original's map with the mask, or of a benign query the share that is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """The originals as a collection would hold them; a row is a place in ``names``."""

    names: tuple[str, ...]
    copies: tuple[bytes, ...]
    embedding_RD: NDArray[np.float64]
    cells_RNF: NDArray[np.int8]
    group: dict[int, frozenset[int]]
    """Near-duplicates of each row, itself among them."""


def gallery(data: Path, encoder: Encoder, moved: Callable[[int], None] = lambda _: None) -> Gallery:
    """The 750 photographs, encoded. Raises ``ValueError`` where one is missing."""
    split = split_files.load()
    val = sorted(path.name for path in (data / "photos" / "val").glob("*.jpg"))
    listed = [("train", name) for name in sorted((*split.train, *split.calibrate))] + [("val", name) for name in val]
    copies, embeddings, cells, hashes = [], [], [], []
    for part, name in listed:
        path = data / "photos" / part / name
        picture = views.at_working_size(read(path))
        made = encoder.encode(picture, mirrored=False)
        assert made.cells_VNF is not None
        copies.append(working_copy(pixels(picture)))
        embeddings.append(made.embedding_VD[0])
        cells.append(made.cells_VNF[0])
        hashes.append(split_files.hash_file(path))
        moved(1)
    members = [frozenset(group) for group in split_files.groups(np.stack(hashes))]
    return Gallery(
        names=tuple(name for _, name in listed),
        copies=tuple(copies),
        embedding_RD=np.stack(embeddings).astype(np.float64),
        cells_RNF=np.stack(cells),
        group={row: group for group in members for row in group},
    )


def read(path: Path) -> Picture:
    """One photograph, uint8 RGB. Raises ``ValueError`` where there is none."""
    bgr_HWC = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if bgr_HWC is None:
        raise ValueError(f"{path.name} is not in {path.parent}; give the development data with --data")
    return np.asarray(cv2.cvtColor(bgr_HWC, cv2.COLOR_BGR2RGB), np.uint8)


def pixels(rgb_HWC: Picture) -> Pixels:
    """A working-size picture as the decoder would hand it on."""
    height, width = rgb_HWC.shape[:2]
    return Pixels(rgb_HWC=rgb_HWC, width=width, height=height, sha256="", format="JPEG")


def questions(picture_HWC: Picture, name: str, donors: Sequence[Picture]) -> Iterator[Question]:
    """The queries of one photograph at working size; the same whatever else is rendered."""
    for kind, count in QUERIES.items():
        for number in range(count):
            yield question(picture_HWC, name, donors, kind, number)


def question(picture_HWC: Picture, name: str, donors: Sequence[Picture], kind: Kind, number: int) -> Question:
    rng = views.generator(f"verdict {kind} {name}", number, SEED)
    if kind == "benign":
        rgb_HWC = views.at_working_size(benign.render(picture_HWC, rng).rgb_HWC)
        return Question(kind=kind, name=name, number=number, rgb_HWC=rgb_HWC, mask_HW=None)
    edited = edits.manipulate(picture_HWC, rng, donors)
    if kind == "manip":
        saved_HWC = benign.jpeg_round_trip(edited.rgb_HWC, int(rng.integers(SAVED_MIN, SAVED_MAX)))
        rendered = benign.Rendered(rgb_HWC=saved_HWC, source_from_query_33=np.eye(3), mirrored=False, log=[])
    else:
        rendered = benign.render(edited.rgb_HWC, rng)
    rgb_HWC = views.at_working_size(rendered.rgb_HWC)
    mask_HW = geometry.resize(rendered.carry(edited.mask_HW), (rgb_HWC.shape[1], rgb_HWC.shape[0]))
    grown = float(np.linalg.det(rendered.source_from_query_33[:2, :2]))
    size_px = np.count_nonzero(edited.mask_HW) / abs(grown) * rgb_HWC[..., 0].size / rendered.rgb_HWC[..., 0].size
    seen = np.count_nonzero(mask_HW > 127) / max(size_px, 1.0)
    return Question(kind=kind, name=name, number=number, rgb_HWC=rgb_HWC, mask_HW=mask_HW, hidden=bool(seen < SEEN_MIN))


def gather(
    data: Path, encoder: Encoder, comparator: Comparator, moved: Callable[[int], None] = lambda _: None
) -> Iterator[Evidence]:
    """Every query of the calibration photographs, asked both ways; ``moved`` counts photographs, 750 + 200."""
    split = split_files.load()
    shelf = gallery(data, encoder, moved)
    donors = list(itertools.islice(views.photographs(data, split.train), DONORS))
    for name, picture in zip(split.calibrate, views.photographs(data, split.calibrate), strict=True):
        for one in questions(picture, name, donors):
            yield ask(one, shelf, encoder, comparator)
        moved(1)


def ask(one: Question, shelf: Gallery, encoder: Encoder, comparator: Comparator) -> Evidence:
    """One query with its original in the gallery, and with its whole group left out."""
    encoded = encoder.encode(one.rgb_HWC, mirrored=True)
    row = shelf.names.index(one.name)
    group = shelf.group[row]
    hits = shortlist(encoded, shelf, SHORTLIST + len(group))
    known, strangers = hits[:SHORTLIST], [hit for hit in hits if hit.row not in group][:SHORTLIST]
    with_original = _compared(one, verdict.rank(known), shelf, encoder, comparator, least=0)
    # the luckiest stranger, whatever its match, is only measured: one query of each whole kind is enough of them
    least = 1 if one.number == 0 and one.kind != "manip" else 0
    without = _compared(one, verdict.rank(strangers), shelf, encoder, comparator, least=least)
    judged = with_original.judged.get(row)
    return Evidence(
        kind=one.kind,
        name=one.name,
        number=one.number,
        hidden=one.hidden,
        row=row,
        encoded=replace(encoded, cells_VNF=None),
        with_original=with_original,
        without=without,
        shown_T=None if judged is None else shown(judged, one.rgb_HWC.shape[:2], one.mask_HW),
    )


def shortlist(encoded: Encoded, shelf: Gallery, count: int) -> list[Hit]:
    """The nearest originals by int8 embedding, verified, as a host answers them."""
    assert encoded.cells_VNF is not None
    order_R = nearest(encoded.embedding_VD.astype(np.float64), shelf.embedding_RD)[:count]
    found = matching.match(encoded.cells_VNF, shelf.cells_RNF[order_R])
    return [
        Hit(
            row=row,
            image_id=shelf.names[row],
            distance=float(place),
            refined_distance=float(place),
            match=one.score,
            mirrored=one.mirrored,
            affine=one.affine,
        )
        for place, (row, one) in enumerate(zip(order_R.tolist(), found, strict=True))
    ]


def _compared(
    one: Question, ranked: tuple[Hit, ...], shelf: Gallery, encoder: Encoder, comparator: Comparator, *, least: int
) -> Side:
    threshold = encoder.card.match_threshold
    chosen = [hit for n, hit in enumerate(ranked[:RERANK_MAX]) if n < least or (hit.match or 0.0) >= threshold]
    pairings = [Pairing(original=shelf.copies[hit.row], affine=hit.affine, mirrored=hit.mirrored) for hit in chosen]
    judged = comparator.compare(one.rgb_HWC, pairings)
    return Side(hits=ranked[:RERANK_MAX], judged={hit.row: said for hit, said in zip(chosen, judged, strict=True)})


def shown(judged: Judged, size: tuple[int, ...], mask_HW: Picture | None) -> Shares:
    """By threshold, at the query's ``size`` (rows, columns): IoU with the mask; without one, the share shown."""
    height, width = size
    heat_HW = cv2.resize(judged.heatmap_RC, (width, height), interpolation=cv2.INTER_LINEAR)
    # how many thresholds each place reaches
    level_HW = np.searchsorted(THRESHOLDS.astype(np.float32), heat_HW, side="right")
    counts_T = _reaching(level_HW)
    if mask_HW is None:
        return np.asarray(counts_T / level_HW.size, np.float64)
    mask = mask_HW > 127
    both_T = _reaching(level_HW[mask])
    return np.asarray(both_T / np.maximum(counts_T + np.count_nonzero(mask) - both_T, 1), np.float64)


def _reaching(level_Q: NDArray[np.int64]) -> NDArray[np.int64]:
    at = np.bincount(level_Q.ravel(), minlength=len(THRESHOLDS) + 1)
    return np.asarray(at[::-1].cumsum()[::-1][1:], np.int64)
