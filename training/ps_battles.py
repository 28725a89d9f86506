"""PS-Battles (Heller, Rossetto and Schuldt 2018): photographs and what people made of them, as DIC 4.1 uses them.

    FOLDER/originals.tsv                        id url end hash filesize score author link timestamp width height
    FOLDER/photoshops.tsv                       id original url end hash ... : one row per variant of an original
    FOLDER/originals/<id>.<end>
    FOLDER/photoshops/<original>/<id>.<end>

A group is an original with its variants. What is missing, corrupt or not what the list names is skipped, counted and
named. The filter (DIC 4.1) keeps pairs whose ResNet50 features lie nearer than beta; the paper's 150 belongs to a layer
that it does not name, so beta is fitted to keep the published share (``calibrate``) and stands beside its layer. The
split is by group, by a hash of the original's bytes: neither beta nor missing files move a group to the other side.

    python -m training.ps_battles --data FOLDER [--weights RESNET50 --layer pooled|map] [--beta B]
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from stemma.errors import Corrupt, NotFound
from stemma.networks import public
from stemma.networks.encoder import squash
from stemma.vision.geometry import Picture

ORIGINALS, PHOTOSHOPS = "originals", "photoshops"
COLUMNS = {
    ORIGINALS: ("id", "url", "end", "hash", "filesize", "score", "author", "link", "timestamp", "width", "height"),
    PHOTOSHOPS: (
        *("id", "original", "url", "end", "hash", "filesize", "score"),
        *("author", "link", "timestamp", "width", "height"),
    ),
}
ENDS = ("jpg", "png")
SIDE_PX_MIN = 32
BATCH = 16
"""Pictures whose features are asked for at once."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""An id becomes a file name: nothing else may stand in it."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Counts(NamedTuple):
    """Of a set of pairs."""

    originals: int
    variants: int


LISTED = Counts(11_142, 90_886)
PAPER_KEPT, PAPER_TRAIN, PAPER_TEST = Counts(7_171, 24_157), Counts(6_364, 21_197), Counts(807, 2_960)
"""DIC 4.1, after beta = 150."""
KEPT_SHARE = PAPER_KEPT.variants / LISTED.variants
TEST_SHARE = PAPER_TEST.originals / PAPER_KEPT.originals

Feature = Callable[[Sequence[Picture]], NDArray[np.float32]]
"""N pictures uint8 RGB of any size -> [N, D]."""
Layer = Literal["pooled", "map"]
Side = Literal["train", "test"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row of a list."""

    id: str
    group: str
    """Id of the original; an original's own."""
    file: str
    """Below the folder."""
    sha256: str
    """Of the file."""


class Pair(NamedTuple):
    """An original and one thing that was made of it."""

    original: Entry
    variant: Entry


@dataclass(frozen=True, slots=True)
class PsBattles:
    """The lists of a folder, and its pictures, read when asked."""

    folder: Path
    pairs: tuple[Pair, ...]
    """In order of the lists, group by group."""
    skipped: dict[str, str] = field(default_factory=dict)
    """File, or list and line -> why it is left out; grows as pictures are read."""

    @classmethod
    def open(cls, folder: Path) -> PsBattles:
        """Read both lists. Raises ``NotFound`` for a missing one and ``Corrupt`` for one with other columns."""
        skipped: dict[str, str] = {}
        originals = {entry.id: entry for entry in _entries(folder, ORIGINALS, skipped)}
        groups: dict[str, list[Entry]] = defaultdict(list)
        for entry in _entries(folder, PHOTOSHOPS, skipped):
            original = originals.get(entry.group)
            if original is None:
                skipped[entry.file] = "its original is not in the list"
            elif entry.sha256 == original.sha256:
                skipped[entry.file] = "the same bytes as its original"
            else:
                groups[entry.group].append(entry)
        pairs = [Pair(originals[group], one) for group in originals for one in groups.get(group, ())]
        return cls(folder, tuple(pairs), skipped)

    def read(self, entry: Entry) -> Picture | None:
        """uint8 RGB, or None for what is missing or not the picture that the list names (then it is in ``skipped``)."""
        if entry.file in self.skipped:
            return None
        path = self.folder / entry.file
        body = path.read_bytes() if path.is_file() else b""
        why = "missing or empty" if not body else ""
        if body and hashlib.sha256(body).hexdigest() != entry.sha256:
            why = "other bytes than the list names (SHA-256)"
        if not why:
            bgr_HWC = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
            if bgr_HWC is not None and min(bgr_HWC.shape[:2]) >= SIDE_PX_MIN:
                return np.asarray(cv2.cvtColor(bgr_HWC, cv2.COLOR_BGR2RGB), np.uint8)
            why = f"not a picture of {SIDE_PX_MIN} px or more"
        self.skipped[entry.file] = why
        return None


def _entries(folder: Path, name: str, skipped: dict[str, str]) -> Iterator[Entry]:
    path = folder / f"{name}.tsv"
    if not path.is_file():
        raise NotFound("PS-Battles' lists are originals.tsv and photoshops.tsv", subject=str(path))
    # not splitlines: an account's name may hold a character that Unicode calls a line's end
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    if tuple(lines[0].split("\t")) != COLUMNS[name]:
        raise Corrupt(f"the first line must name the columns {' '.join(COLUMNS[name])}", subject=str(path))
    seen: set[str] = set()
    for number, line in enumerate(lines[1:], start=2):
        parts = line.split("\t")
        row = dict(zip(COLUMNS[name], parts, strict=False))
        why = _complaint(row, len(parts) == len(COLUMNS[name]), seen)
        if why:
            skipped[f"{path.name}:{number}"] = why
            continue
        seen.add(row["id"])
        group = row.get("original", row["id"])
        place = f"{name}/{row['id']}" if name == ORIGINALS else f"{name}/{group}/{row['id']}"
        yield Entry(id=row["id"], group=group, file=f"{place}.{row['end']}", sha256=row["hash"])


def _complaint(row: Mapping[str, str], whole: bool, seen: set[str]) -> str:
    if not whole:
        return "not as many fields as columns"
    if not all(_NAME.fullmatch(row[key]) for key in ("id", "original") if key in row):
        return "an id that is no file name"
    if row["end"] not in ENDS or not _SHA256.fullmatch(row["hash"]):
        return "neither jpg nor png, or no SHA-256"
    return "an id that was listed before" if row["id"] in seen else ""


# The filter


def measure(data: PsBattles, feature: Feature) -> dict[str, float]:
    """Variant's id -> Euclidean distance of its feature from its original's; pairs that cannot be read are left out."""
    found: dict[str, float] = {}
    groups: dict[str, list[Pair]] = defaultdict(list)
    for pair in data.pairs:
        groups[pair.original.id].append(pair)
    for pairs in groups.values():
        original_HWC = data.read(pairs[0].original)
        if original_HWC is None:
            continue
        origin_D = feature([original_HWC])[0].astype(np.float64)
        for start in range(0, len(pairs), BATCH):
            read = [(pair.variant.id, data.read(pair.variant)) for pair in pairs[start : start + BATCH]]
            whole = {id: picture for id, picture in read if picture is not None}
            if whole:
                away_ND = feature(list(whole.values())).astype(np.float64) - origin_D
                found |= dict(zip(whole, np.linalg.norm(away_ND, axis=1).tolist(), strict=True))
    return found


def calibrate(distances: Mapping[str, float], *, share: float = KEPT_SHARE) -> float:
    """The beta under which ``share`` of the pairs lie, to the nearest pair, midway between two distances.

    Raises ``ValueError`` without distances or for a share outside 0..1.
    """
    if not distances or not 0 <= share <= 1:
        raise ValueError(f"{len(distances)} distances cannot be cut at a share of {share}")
    ordered = sorted(distances.values())
    kept = round(share * len(ordered))
    if kept == 0:
        return ordered[0]
    return (ordered[kept - 1] + ordered[kept]) / 2 if kept < len(ordered) else float(np.nextafter(ordered[-1], np.inf))


def near(pairs: Iterable[Pair], distances: Mapping[str, float], beta: float) -> list[Pair]:
    """D = pairs whose distance is smaller than beta (DIC 4.1); what was not measured is not kept."""
    return [pair for pair in pairs if distances.get(pair.variant.id, np.inf) < beta]


def resnet50(path: Path, layer: Layer) -> Feature:
    """ImageNet's ResNet50 (torchvision's names) as a feature: its mean-pooled 2048, or the whole 7 x 7 x 2048 map.

    Raises as ``public.read_state`` does, and ``Corrupt`` for another network's tensors.
    """
    from torchvision.models import resnet50 as architecture

    net = architecture(weights=None)
    try:
        net.load_state_dict(public.read_state(path))
    except RuntimeError as error:
        raise Corrupt("these are not the tensors of torchvision's resnet50", subject=str(path)) from error
    body = torch.nn.Sequential(*list(net.children())[:-2]).eval()
    mean_C11, deviation_C11 = (
        torch.tensor(part)[:, None, None] for part in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )

    @torch.inference_mode()
    def feature(pictures: Sequence[Picture]) -> NDArray[np.float32]:
        image_N3HW = torch.from_numpy(np.stack([squash(one) for one in pictures])).permute(0, 3, 1, 2).float() / 255
        map_NC77 = body((image_N3HW - mean_C11) / deviation_C11)
        return np.asarray((map_NC77.mean((2, 3)) if layer == "pooled" else map_NC77.flatten(1)).numpy(), np.float32)

    return feature


# The split


def side(original: Entry) -> Side:
    """Where an original's group belongs: 807 of 7,171 test. Originals of the same bytes are on one side."""
    drawn = int(hashlib.sha256(f"ps-battles {original.sha256}".encode()).hexdigest()[:16], 16)
    return "test" if drawn < TEST_SHARE * 2.0**64 else "train"


def divide(pairs: Iterable[Pair]) -> dict[Side, list[Pair]]:
    """The pairs by side, each in order; no group is on both."""
    out: dict[Side, list[Pair]] = {"train": [], "test": []}
    for pair in pairs:
        out[side(pair.original)].append(pair)
    return out


def count(pairs: Iterable[Pair]) -> Counts:
    """Groups and variants."""
    kept = list(pairs)
    return Counts(len({pair.original.id for pair in kept}), len(kept))


def table(data: PsBattles, kept: Sequence[Pair]) -> str:
    """Counts beside the paper's, and what was skipped by reason."""
    sides = divide(kept)
    rows = [
        ("listed", count(data.pairs), LISTED),
        ("kept", count(kept), PAPER_KEPT),
        ("train", count(sides["train"]), PAPER_TRAIN),
        ("test", count(sides["test"]), PAPER_TEST),
    ]
    lines = [f"{'':8}{'originals':>12}{'variants':>12}{'paper':>20}"]
    for name, ours, paper in rows:
        published = f"{paper.originals:,} / {paper.variants:,}"
        lines.append(f"{name:8}{ours.originals:>12,}{ours.variants:>12,}{published:>20}")
    reasons: dict[str, list[str]] = defaultdict(list)
    for file, why in data.skipped.items():
        reasons[why].append(file)
    lines += [f"skipped {len(files):,}, {why}; first {files[0]}" for why, files in sorted(reasons.items())]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="ImageNet's ResNet50; without it nothing is filtered")
    parser.add_argument("--layer", choices=["pooled", "map"], default="pooled")
    parser.add_argument("--beta", type=float, help="default: fitted to keep the published share")
    args = parser.parse_args()
    data = PsBattles.open(args.data)
    kept: Sequence[Pair] = data.pairs
    if args.weights is not None:
        distances = measure(data, resnet50(args.weights, args.layer))
        beta = calibrate(distances) if args.beta is None else args.beta
        kept = near(data.pairs, distances, beta)
        print(f"beta {beta:.4g} on ResNet50's {args.layer} features")
    print(table(data, kept))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
