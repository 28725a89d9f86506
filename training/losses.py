"""The losses of DIC, each beside the reading that was chosen where the paper is open (docs/papers.md 2.1).

Shape letters: B items or pairs of this worker; P items of all workers; D dimensions; H, W map sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from stemma.networks.comparator import BENIGN, DISTINCT, GRID, MANIPULATED

Form = Literal["printed", "supcon", "positives_below"]
COSINE_EPS = 1e-8


@dataclass(frozen=True, slots=True)
class Term:
    """A loss that is a mean over what counts, kept as its two parts: workers have different counts in their shares."""

    total: Tensor
    count: Tensor

    @property
    def mean(self) -> Tensor:
        """0 where nothing counts."""
        return self.total / self.count.clamp_min(1.0)


def contrastive(
    e_BD: Tensor,
    group_B: Tensor,
    *,
    temperature: float,
    form: Form = "printed",
    pool_PD: Tensor | None = None,
    pool_group_P: Tensor | None = None,
    first: int | None = 0,
) -> Tensor:
    """Multi-positive contrastive loss (DIC eq. 1-2), mean over this worker's anchors.

    ``e_BD`` is E_b's output. Items of one original, transformed or manipulated, share a ``group``: they are each
    other's positives, all others are negatives, and an item is in neither of its own sets. S = cosine / temperature:

    - ``printed``: logsumexp(S over negatives) - logsumexp(S over positives). No cross-entropy: it goes below 0.
    - ``supcon``: the mean over positives of -S, outside the logarithm, + logsumexp(S over negatives and positives).
    - ``positives_below``: as printed, with the positives in the denominator too.

    ``pool_PD`` and ``pool_group_P`` are the items of all workers, of which this worker's stand at ``first`` (None: the
    anchors are not among them); without them a worker's own items are the pool. Gathered differentiably and averaged
    over workers, the gradient is that of the whole batch on one worker. Raises ``ValueError`` for an anchor without a
    positive or a negative.
    """
    if pool_PD is None or pool_group_P is None:
        pool_PD, pool_group_P = e_BD, group_B
    # in float32: at temperature .1 half precision would lose the differences between negatives
    scores_BP = _unit(e_BD.float()) @ _unit(pool_PD.float()).T / temperature
    # anchors that are not in the pool stand behind its end
    start = len(pool_PD) if first is None else first
    places_B = torch.arange(len(e_BD), device=e_BD.device) + start
    itself_BP = places_B[:, None] == torch.arange(len(pool_PD), device=e_BD.device)
    same_BP = group_B[:, None] == pool_group_P
    positive_BP, negative_BP = same_BP & ~itself_BP, ~same_BP
    if not (positive_BP.any(1).all() and negative_BP.any(1).all()):
        raise ValueError("every item needs another of its group and one of another group in the batch")
    if form == "supcon":
        mean_B = scores_BP.masked_fill(~positive_BP, 0.0).sum(1) / positive_BP.sum(1)
        loss_B = _logsumexp(scores_BP, positive_BP | negative_BP) - mean_B
    else:
        below_BP = negative_BP if form == "printed" else negative_BP | positive_BP
        loss_B = _logsumexp(scores_BP, below_BP) - _logsumexp(scores_BP, positive_BP)
    return loss_B.mean()


def _unit(x_BD: Tensor) -> Tensor:
    norm_B1: Tensor = torch.linalg.vector_norm(x_BD, dim=1, keepdim=True)
    return x_BD / (norm_B1 + COSINE_EPS)


def _logsumexp(scores_BP: Tensor, of_BP: Tensor) -> Tensor:
    return scores_BP.masked_fill(~of_BP, -torch.inf).logsumexp(1)


def classes(logits_B3: Tensor, label_B: Tensor) -> Term:
    """L_C (eq. 8-9): cross-entropy over benign, manipulated, distinct, mean over pairs."""
    total = functional.cross_entropy(logits_B3, label_B, reduction="sum")
    return Term(total, torch.full_like(total.detach(), len(label_B)))


def grid_truth(mask_B1HW: Tensor, label_B: Tensor) -> Tensor:
    """T [B, 7, 7] (eq. 10): nothing for benign pairs, ones for distinct, else the edit's share of each cell."""
    truth_B77 = functional.adaptive_avg_pool2d(mask_B1HW, GRID).squeeze(1)
    label_B11 = label_B[:, None, None]
    truth_B77 = torch.where(label_B11 == DISTINCT, torch.ones_like(truth_B77), truth_B77)
    return torch.where(label_B11 == BENIGN, torch.zeros_like(truth_B77), truth_B77)


def grid(grid_B77: Tensor, truth_B77: Tensor) -> Term:
    """L_T (eq. 10): 1 - cosine of the 49-vectors, mean over pairs that have a truth; 0 if none has.

    A benign pair's T is 0 and its term 0/0: NaN as printed, a constant without gradient under an epsilon. Such pairs,
    and manipulated ones of which nothing is left to see, are left out (docs/papers.md 2.1, 7).
    """
    said_BN, truth_BN = grid_B77.flatten(1), truth_B77.flatten(1)
    counted_B = truth_BN.sum(1) > 0
    cosine_B = (_unit(said_BN) * _unit(truth_BN)).sum(1)
    return Term(torch.where(counted_B, 1.0 - cosine_B, 0.0).sum(), counted_B.sum().float())


def map_truth(mask_B1HW: Tensor, size: tuple[int, int]) -> Tensor:
    """The edit's share of each cell of a map [B, 1, *size]."""
    return functional.adaptive_avg_pool2d(mask_B1HW, size)


def map_bce(map_logits_B1HW: Tensor, truth_B1HW: Tensor, weight_B1HW: Tensor) -> Term:
    """Cross-entropy of the heatmap per cell, mean over the cells that count; 0 if none does."""
    each_B1HW = functional.binary_cross_entropy_with_logits(map_logits_B1HW, truth_B1HW, reduction="none")
    return Term((each_B1HW * weight_B1HW).sum(), weight_B1HW.sum())


def map_overlap(map_logits_B1HW: Tensor, truth_B1HW: Tensor, weight_B1HW: Tensor, label_B: Tensor) -> Term:
    """1 - soft IoU of the heatmap, mean over manipulated pairs that have a truth; 0 if none has.

    Cross-entropy counts cells, so a large edit drowns ten small ones; IoU counts edits, as the figures do.
    """
    said_B1HW = torch.sigmoid(map_logits_B1HW) * weight_B1HW
    truth_B1HW = truth_B1HW * weight_B1HW
    both_B = (said_B1HW * truth_B1HW).sum((1, 2, 3))
    either_B = said_B1HW.sum((1, 2, 3)) + truth_B1HW.sum((1, 2, 3)) - both_B
    counted_B = (label_B == MANIPULATED) & (truth_B1HW.sum((1, 2, 3)) > 0)
    total = torch.where(counted_B, 1.0 - both_B / either_B.clamp_min(1e-6), 0.0).sum()
    return Term(total, counted_B.sum().float())
