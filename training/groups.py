"""Groups of pictures for the contrastive encoder (DIC 3.1, 4.2): one original, versions of it, and a manipulated one's.

A global batch is 16 originals, each with one manipulated version, two augmented views of each of the two: 64 views,
3 positives and 60 negatives an anchor. Originals are unique in a batch, since a repeated one would be a false negative.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stemma.networks.encoder import squash
from stemma.vision import benign, edits
from stemma.vision.geometry import Picture
from training import data
from training.data import Photographs

VIEWS = 4
"""Two of the original, two of its manipulated version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Versions of one photograph, uint8 [224, 224, 3]."""

    photograph: int
    clean_HWC: Picture
    views_VHWC: Picture
    """[4, 224, 224, 3]: benign, benign, manipulated and benign, manipulated and benign."""


class GroupBatch(NamedTuple):
    """G groups: clean_G3HW and view_B3HW float32 in 0..255, B = 4 G in order of groups; photograph numbers of both."""

    clean_G3HW: Tensor
    view_B3HW: Tensor
    photograph_G: Tensor
    photograph_B: Tensor


class GroupData:
    """Numbered groups; global batch ``step`` holds different photographs."""

    def __init__(self, photographs: Photographs, *, seed: int, batch: int) -> None:
        if batch > len(photographs):
            raise ValueError(f"{batch} different originals cannot be drawn from {len(photographs)} photographs")
        self.photographs, self.seed, self.batch = photographs, seed, batch

    def group(self, step: int, place: int) -> Group:
        """Group ``place`` of global batch ``step``, a pure function of the seed and the two."""
        count = len(self.photographs)
        epoch, inside = divmod(step, count // self.batch)
        order_N = np.random.default_rng([self.seed, 3, epoch]).permutation(count)
        photograph = int(order_N[inside * self.batch + place])
        rng = np.random.default_rng([self.seed, 4, step, place])
        original_HWC = self.photographs[photograph]
        donor_HWC = self.photographs[int(rng.integers(count))]
        edited_HWC = edits.manipulate(original_HWC, rng, [donor_HWC]).rgb_HWC
        sources = (original_HWC, original_HWC, edited_HWC, edited_HWC)
        views = np.stack([squash(benign.render(source, rng).rgb_HWC) for source in sources])
        return Group(photograph=photograph, clean_HWC=squash(original_HWC), views_VHWC=views)

    def sample(self, n: int) -> Group:
        """Group ``n`` of all: the groups of global batch ``step`` are numbered from ``step * batch`` on."""
        return self.group(*divmod(n, self.batch))

    def numbers(self, step: int, *, batch: int, rank: int, world: int) -> list[int]:
        """This worker's share of a global batch, in runs of neighbours; ``ValueError`` if it cannot be shared."""
        if batch != self.batch or batch % world:
            raise ValueError(f"a global batch of {self.batch} cannot be shared by {world} workers as one of {batch}")
        share = batch // world
        return list(range(step * batch + rank * share, step * batch + (rank + 1) * share))

    def collate(self, samples: Sequence[Group]) -> GroupBatch:
        return collate(samples)

    def batches(self, first: int, *, rank: int = 0, world: int = 1) -> Iterator[GroupBatch]:
        """This worker's share of every global batch from ``first`` on, rendered here."""
        yield from data.Feed(self, batch=self.batch, step=first, rank=rank, world=world)


def collate(groups: Sequence[Group]) -> GroupBatch:
    """The batch of some groups, in order."""

    def stack(pictures: list[Picture]) -> Tensor:
        stacked = torch.from_numpy(np.concatenate(pictures))
        return stacked.permute(0, 3, 1, 2).float().contiguous(memory_format=torch.channels_last)

    photograph_G = torch.tensor([group.photograph for group in groups])
    return GroupBatch(
        clean_G3HW=stack([group.clean_HWC[None] for group in groups]),
        view_B3HW=stack([group.views_VHWC for group in groups]),
        photograph_G=photograph_G,
        photograph_B=photograph_G.repeat_interleave(VIEWS),
    )
