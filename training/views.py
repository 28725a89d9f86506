"""Rendered views of training photographs, through the trunk: what projections and codecs are fitted on.

    python -m training.views --data DIR --out FILE.npz

Views are drawn by ``stemma.vision.benign`` with a generator seeded by (seed, photograph's name, number), so that a view
does not depend on which photographs stand beside it. Everything is taken before any projection, in the split's order of
names. Cells need views that leave every cell in its place, so they have their own, of the in-place group alone.

Shape letters: N photographs; P views of each; C features; K channels of a cell.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from stemma.networks import weights as weights_files
from stemma.networks.backbones import Lite0, lite0_keys
from stemma.networks.encoder import SIZES, STARTER, EncoderNetwork, fill, squash
from stemma.vision import benign
from training import split as split_files

Picture = NDArray[np.uint8]

PUBLIC_FILE = "efficientnet_lite0.safetensors"
SEED = 20261124
VIEWS_PER_PHOTOGRAPH = 20
CELL_VIEWS_PER_PHOTOGRAPH = 4
WORKING_SIDE_PX = 512
"""Queries reach the encoder at working size, and so must these (config: decode.working_side_px)."""
PROGRESS_EVERY = 25


def photographs(data: Path, names: Iterable[str]) -> Iterator[Picture]:
    """The named training photographs, uint8 RGB [H, W, 3], at stored size. Raises ``ValueError`` where one lacks."""
    for name in names:
        path = data / "photos" / "train" / name
        bgr_HWC = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if bgr_HWC is None:
            raise ValueError(f"{name} is not in {path.parent}; give the development data with --data")
        yield np.asarray(cv2.cvtColor(bgr_HWC, cv2.COLOR_BGR2RGB), np.uint8)


def generator(name: str, number: int, seed: int = SEED) -> np.random.Generator:
    """The generator of one view, the same whatever else is rendered."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), number])


def at_working_size(rgb_HWC: Picture, side_px: int = WORKING_SIDE_PX) -> Picture:
    """As the decoder hands it on: long side at most ``side_px``, never enlarged."""
    height, width = rgb_HWC.shape[:2]
    share = side_px / max(height, width)
    if share >= 1:
        return rgb_HWC
    size = (max(1, round(width * share)), max(1, round(height * share)))
    return np.array(Image.fromarray(rgb_HWC).resize(size, Image.Resampling.LANCZOS))


def render(picture: Picture, name: str, number: int, seed: int = SEED) -> Picture:
    """Benign view ``number`` of a photograph, at working size."""
    return at_working_size(benign.render(picture, generator(name, number, seed)).rgb_HWC)


def public_tensors(data: Path) -> weights_files.Tensors:
    """The public Lite0's trunk under our names, as stored (float16; BatchNorm statistics float32)."""
    # a second of import that reading a split does not need
    from safetensors.numpy import load_file

    path = data / "weights" / PUBLIC_FILE
    if not path.is_file():
        raise ValueError(f"{path} is not there; give the development data with --data")
    theirs = load_file(path)
    return {f"trunk.{ours}": theirs[key] for ours, key in lite0_keys()}


def public_network(data: Path) -> EncoderNetwork:
    """The starter with its public trunk and no projections yet, folded."""
    made = EncoderNetwork(STARTER).eval()
    made.load_state_dict({name: torch.from_numpy(value) for name, value in public_tensors(data).items()}, strict=False)
    return _ready(made)


def network(folder: Path | None = None) -> EncoderNetwork:
    """The network of some weights, folded and ready for one picture at a time."""
    card, tensors = weights_files.read_tensors(folder)
    return ready(tensors, card.size)


def ready(tensors: weights_files.Tensors, size: str) -> EncoderNetwork:
    """The network of these tensors, folded and ready for one picture at a time."""
    return _ready(_filled(tensors, size))


def unfolded(folder: Path | None = None) -> EncoderNetwork:
    """The network of some weights as training takes it, BatchNorm beside its convolutions."""
    card, tensors = weights_files.read_tensors(folder)
    return _filled(tensors, card.size)


def _filled(tensors: weights_files.Tensors, size: str) -> EncoderNetwork:
    made = EncoderNetwork(SIZES[size]).eval()
    fill(made, {name: one.astype(np.float32) for name, one in tensors.items()}, subject=size)
    return made


def _ready(made: EncoderNetwork) -> EncoderNetwork:
    if isinstance(made.trunk, Lite0):
        made.trunk.fold()
    ready: EncoderNetwork = made.to(memory_format=torch.channels_last)
    return ready


def pooled(made: EncoderNetwork, picture: Picture) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(features [C] before the projection, cells [196, C']) of one picture."""
    with torch.inference_mode():
        image_B3HW = torch.from_numpy(squash(picture))[None].permute(0, 3, 1, 2).float()
        pooled_BC, cells_BCHW = made.pooled(image_B3HW)
        return pooled_BC[0].numpy(), cells_BCHW[0].flatten(1).T.numpy()


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What benign changes do to the features of the photographs."""

    pooled_NPC: NDArray[np.float32]
    """Pooled features of the benign views."""
    cell_noise_KK: NDArray[np.float64]
    """Mean product of how far in-place changes move the channels of a cell."""

    def save(self, path: Path) -> None:
        np.savez(path, pooled_NPC=self.pooled_NPC, cell_noise_KK=self.cell_noise_KK)

    @classmethod
    def load(cls, path: Path, photographs_count: int) -> Features:
        """Raises ``ValueError`` when the file holds another number of photographs."""
        with np.load(path, allow_pickle=False) as stored:
            made = cls(pooled_NPC=stored["pooled_NPC"], cell_noise_KK=stored["cell_noise_KK"])
        if len(made.pooled_NPC) != photographs_count:
            raise ValueError(f"{path} holds views of {len(made.pooled_NPC)} photographs, not of {photographs_count}")
        return made


def in_place(picture: Picture, name: str, number: int) -> Picture:
    """In-place view ``number`` of a photograph: resized, recompressed, disturbed, but nothing has moved."""
    rng = generator(f"in {name}", number)
    return at_working_size(benign.render(picture, rng, groups=("in",)).rgb_HWC)


def view_features(
    made: EncoderNetwork,
    data: Path,
    names: tuple[str, ...],
    per: int = VIEWS_PER_PHOTOGRAPH,
    per_cells: int = CELL_VIEWS_PER_PHOTOGRAPH,
    processes: int = 1,
) -> Features:
    """The features of all views, with a line of progress now and then; the same bits from any number of processes."""
    of_one = _OfOne(made, data, per, per_cells)
    pooled_NPC = np.empty((len(names), per, made.size.features), np.float32)
    noise_KK = np.zeros((made.size.cell_channels, made.size.cell_channels))
    for i, (pooled_PC, moved_KK) in enumerate(_each(of_one, names, processes)):
        pooled_NPC[i] = pooled_PC
        noise_KK += moved_KK
        if i % PROGRESS_EVERY == 0:
            print(f"{i} of {len(names)} photographs rendered", flush=True)
    return Features(pooled_NPC=pooled_NPC, cell_noise_KK=noise_KK / max(1, len(names) * per_cells))


_Made = tuple[NDArray[np.float32], NDArray[np.float64]]
"""Pooled features [P, C] of a photograph's views, and how far they moved its cells [K, K], summed over views."""


@dataclass(frozen=True, slots=True)
class _OfOne:
    """What is made of one photograph, wherever it is made."""

    made: EncoderNetwork
    data: Path
    per: int
    per_cells: int

    def __call__(self, name: str) -> _Made:
        (picture,) = photographs(self.data, [name])
        channels = self.made.size.cell_channels
        pooled_PC = np.empty((self.per, self.made.size.features), np.float32)
        for number in range(self.per):
            pooled_PC[number] = pooled(self.made, render(picture, name, number))[0]
        noise_KK = np.zeros((channels, channels))
        if self.per_cells:
            clean_MK = pooled(self.made, picture)[1].astype(np.float64)
            for number in range(self.per_cells):
                moved_MK = pooled(self.made, in_place(picture, name, number))[1] - clean_MK
                noise_KK += moved_MK.T @ moved_MK / len(moved_MK)
        return pooled_PC, noise_KK


def _each(of_one: _OfOne, names: tuple[str, ...], processes: int) -> Iterator[_Made]:
    if processes < 2:
        yield from map(of_one, names)
        return
    # spawned: torch's threads do not survive a fork
    with ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn"), initializer=_begin, initargs=(of_one,)
    ) as pool:
        yield from pool.map(_in_child, names)


_child: list[_OfOne] = []
"""In a process of the pool: what it works with, unpickled once."""


def _begin(of_one: _OfOne) -> None:
    torch.set_num_threads(1)
    _child[:] = [of_one]


def _in_child(name: str) -> _Made:
    return _child[0](name)


def main() -> int:
    parser = argparse.ArgumentParser(description="Render benign views of the 501 and keep their features.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a .npz file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = split_files.load().train
    view_features(public_network(args.data), args.data, names, processes=os.cpu_count() or 1).save(args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
