"""The 701 training photographs, divided once into 501 to train on and 200 to calibrate on.

``python -m training.split --data DIR`` computes the division and compares it with the shipped ``training/split.json``
(file names alone); ``--write`` replaces that file. Every fit reads the shipped list, so that figures stay comparable.

The rule. Photographs whose 63-bit DCT hashes differ in at most 12 bits, one of them mirrored or not, belong to one
group (single linkage), and a group is never divided. Groups are ordered by the SHA-256 of their first file name in
alphabetical order; calibrate takes them in that order, passing over a group that would take it beyond 200, until it has
200; the rest is train.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

SPLIT_FILE = Path(__file__).with_name("split.json")
CALIBRATE_COUNT = 200
HASH_BITS = 63
HASH_DISTANCE_MAX = 12
HASH_SIDE_PX = 32
HASH_FREQUENCIES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """File names in ``photos/train``, each list in alphabetical order."""

    train: tuple[str, ...]
    calibrate: tuple[str, ...]


def load(path: Path = SPLIT_FILE) -> Split:
    """The shipped division."""
    lists = json.loads(path.read_text(encoding="utf-8"))
    return Split(train=tuple(lists["train"]), calibrate=tuple(lists["calibrate"]))


def dct_hash(grey_32: NDArray[np.float32]) -> NDArray[np.bool_]:
    """63 bits: the signs, about their median, of the lowest 8 x 8 frequencies without the constant one."""
    low = cv2.dct(grey_32)[:HASH_FREQUENCIES, :HASH_FREQUENCIES].ravel()[1:]
    bits: NDArray[np.bool_] = low > np.median(low)
    return bits


def hash_file(path: Path) -> NDArray[np.bool_]:
    """[2, 63]: of the photograph and of its mirror image.

    Lanczos gives the distances that the data's card states (14 bits between train and heldout); area averaging 12.
    """
    with Image.open(path) as image:
        small = image.convert("L").resize((HASH_SIDE_PX, HASH_SIDE_PX), Image.Resampling.LANCZOS)
    grey_32 = np.asarray(small, np.float32)
    return np.stack([dct_hash(grey_32), dct_hash(np.ascontiguousarray(grey_32[:, ::-1]))])


def groups(bits_NVB: NDArray[np.bool_]) -> list[list[int]]:
    """Indices of near-duplicates from [N, 2, 63] hashes: linked by distance <= 12 of either view of one."""
    signs_NVB = bits_NVB.astype(np.float32) * 2 - 1
    upright_NB = signs_NVB[:, 0]
    near_NN = np.zeros((len(bits_NVB), len(bits_NVB)), bool)
    for view in range(bits_NVB.shape[1]):
        distance_NN = (HASH_BITS - upright_NB @ signs_NVB[:, view].T) / 2
        near_NN |= (distance_NN <= HASH_DISTANCE_MAX) | (distance_NN <= HASH_DISTANCE_MAX).T
    found: list[list[int]] = []
    left = set(range(len(bits_NVB)))
    while left:
        reached, edge = set[int](), {min(left)}
        while edge:
            reached |= edge
            edge = {int(j) for i in edge for j in np.flatnonzero(near_NN[i])} - reached
        left -= reached
        found.append(sorted(reached))
    return found


def divide(members: list[list[str]], calibrate_count: int = CALIBRATE_COUNT) -> Split:
    """The split of groups of file names. Raises ``ValueError`` if they cannot fill ``calibrate_count`` exactly."""
    ordered = sorted((sorted(group) for group in members), key=lambda group: _order(group[0]))
    calibrate: list[str] = []
    train: list[str] = []
    for group in ordered:
        side = calibrate if len(calibrate) + len(group) <= calibrate_count else train
        side.extend(group)
    if len(calibrate) != calibrate_count:
        raise ValueError(f"the groups fill {len(calibrate)} of {calibrate_count} calibration photographs")
    return Split(train=tuple(sorted(train)), calibrate=tuple(sorted(calibrate)))


def _order(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def compute(data: Path) -> Split:
    """The division from the photographs themselves. Raises ``ValueError`` where there are none."""
    paths = sorted((data / "photos" / "train").glob("*.jpg"))
    if not paths:
        raise ValueError(f"no photographs in {data / 'photos' / 'train'}; give the development data with --data")
    found = groups(np.stack([hash_file(path) for path in paths]))
    return divide([[paths[i].name for i in group] for group in found])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--write", action="store_true", help="replace the shipped list")
    args = parser.parse_args()
    split = compute(args.data)
    if args.write:
        lists = {"train": split.train, "calibrate": split.calibrate}
        SPLIT_FILE.write_text(json.dumps(lists, indent=0) + "\n", encoding="utf-8")
    same = load() == split
    shipped = "equal" if same else "other"
    print(f"{len(split.train)} train, {len(split.calibrate)} calibrate; the shipped list is {shipped}")
    return 0 if same else 1


if __name__ == "__main__":
    raise SystemExit(main())
