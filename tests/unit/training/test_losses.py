"""Losses against loops written from the formulas, finite where the printed ones are not, and the same over workers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training import losses

FORMS = ("printed", "supcon", "positives_below")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_loop(e_BD: Tensor, group_B: Tensor, temperature: float, form: str) -> float:
    """Equation 1 as a person would write it, one anchor after the other, in Python floats."""
    rows = [[float(x) for x in row] for row in e_BD.double()]
    groups = group_B.tolist()

    def d(u: list[float], v: list[float]) -> float:
        return sum(a * b for a, b in zip(u, v, strict=True)) / math.dist(u, [0] * len(u)) / math.dist(v, [0] * len(v))

    total = 0.0
    for a, anchor in enumerate(rows):
        positives = [d(anchor, rows[i]) / temperature for i in range(len(rows)) if i != a and groups[i] == groups[a]]
        negatives = [d(anchor, rows[i]) / temperature for i in range(len(rows)) if groups[i] != groups[a]]
        above = sum(math.exp(s) for s in positives)
        below = sum(math.exp(s) for s in negatives)
        if form == "printed":
            total += -math.log(above / below)
        elif form == "positives_below":
            total += -math.log(above / (above + below))
        else:
            total += sum(-math.log(math.exp(s) / (above + below)) for s in positives) / len(positives)
    return total / len(rows)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), form=st.sampled_from(FORMS), temperature=st.sampled_from([0.1, 0.5]))
def test_contrastive_equals_the_loop(seed: int, form: str, temperature: float) -> None:
    e_BD = torch.randn(12, 8, generator=seeded(seed))
    group_B = torch.arange(12) // 4
    found = losses.contrastive(e_BD, group_B, temperature=temperature, form=form)  # type: ignore[arg-type]
    assert float(found) == pytest.approx(by_loop(e_BD, group_B, temperature, form), abs=1e-5)


def test_the_printed_loss_goes_below_zero() -> None:
    """docs/papers.md 2.1, 1: cos+ = 1, cos- = 0, temperature .1, 3 positives, 60 negatives give -7.0."""
    e_BD = torch.eye(16).repeat_interleave(4, 0)
    found = losses.contrastive(e_BD, torch.arange(64) // 4, temperature=0.1)
    assert float(found) == pytest.approx(math.log(60) - math.log(3) - 10, abs=1e-4)


def test_contrastive_is_finite_for_zero_vectors_and_half_precision() -> None:
    e_BD = torch.zeros(8, 4, requires_grad=True)
    losses.contrastive(e_BD, torch.arange(8) // 2, temperature=0.1).backward()
    assert e_BD.grad is not None and torch.isfinite(e_BD.grad).all()
    half = torch.randn(8, 4, generator=seeded(0)).bfloat16()
    assert torch.isfinite(losses.contrastive(half, torch.arange(8) // 2, temperature=0.05))


def test_contrastive_names_what_a_batch_lacks() -> None:
    for groups in ([0, 0, 0, 0], [0, 1, 2, 3]):
        with pytest.raises(ValueError, match="another of its group"):
            losses.contrastive(torch.randn(4, 3), torch.tensor(groups), temperature=0.1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("workers", [2, 4])
def test_workers_averaged_are_one_worker(form: str, workers: int) -> None:
    """Each worker's anchors against everyone's items: the mean of losses and gradients is that of the whole batch."""
    e_BD = torch.randn(16, 6, generator=seeded(3), dtype=torch.float64)
    group_B = torch.arange(16) // 4

    def gradient(parts: int) -> tuple[Tensor, Tensor]:
        whole = e_BD.clone().requires_grad_(True)
        size = 16 // parts
        each = [
            losses.contrastive(
                whole[w * size : (w + 1) * size],
                group_B[w * size : (w + 1) * size],
                temperature=0.1,
                form=form,  # type: ignore[arg-type]
                pool_PD=whole,
                pool_group_P=group_B,
                first=w * size,
            )
            for w in range(parts)
        ]
        loss = torch.stack(each).mean()
        (found,) = torch.autograd.grad(loss, whole)
        return loss.detach(), found

    one, many = gradient(1), gradient(workers)
    assert torch.allclose(one[0], many[0], atol=1e-6)
    assert torch.allclose(one[1], many[1], atol=1e-6)


def test_class_loss_is_minus_the_logarithm_of_the_right_class() -> None:
    logits_B3 = torch.randn(5, 3, generator=seeded(1))
    label_B = torch.tensor([0, 1, 2, 1, 0])
    expected = [-math.log(float(torch.softmax(row, 0)[y])) for row, y in zip(logits_B3, label_B, strict=True)]
    assert float(losses.classes(logits_B3, label_B).mean) == pytest.approx(sum(expected) / 5, abs=1e-5)


def grid_by_loop(grid_B77: Tensor, truth_B77: Tensor) -> float:
    terms = []
    for said, truth in zip(grid_B77.flatten(1).tolist(), truth_B77.flatten(1).tolist(), strict=True):
        size = math.hypot(*truth)
        if size > 0:
            terms.append(1 - sum(a * b for a, b in zip(said, truth, strict=True)) / math.hypot(*said) / size)
    return sum(terms) / len(terms) if terms else 0.0


@settings(max_examples=15, deadline=None)
@given(labels=st.lists(st.integers(0, 2), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_grid_loss_equals_the_loop_over_whatever_has_a_truth(labels: list[int], seed: int) -> None:
    generator = seeded(seed)
    grid_B77 = torch.randn(len(labels), 7, 7, generator=generator)
    mask_B1HW = (torch.rand(len(labels), 1, 28, 28, generator=generator) > 0.8).float()
    truth_B77 = losses.grid_truth(mask_B1HW, torch.tensor(labels))
    for label, truth_77 in zip(labels, truth_B77, strict=True):
        assert (label != 0) or bool((truth_77 == 0).all())
        assert (label != 2) or bool((truth_77 == 1).all())
    assert float(losses.grid(grid_B77, truth_B77).mean) == pytest.approx(grid_by_loop(grid_B77, truth_B77), abs=1e-5)


def test_benign_pairs_alone_give_a_finite_grid_loss_without_gradient() -> None:
    """The printed term is 0/0 for them (docs/papers.md 2.1, 7)."""
    grid_B77 = torch.randn(3, 7, 7, generator=seeded(2), requires_grad=True)
    truth_B77 = losses.grid_truth(torch.ones(3, 1, 14, 14), torch.zeros(3, dtype=torch.long))
    loss = losses.grid(grid_B77, truth_B77).mean
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert grid_B77.grad is not None and float(grid_B77.grad.abs().max()) == 0.0


def test_grid_loss_does_not_see_the_scale() -> None:
    grid_B77 = torch.randn(2, 7, 7, generator=seeded(4))
    truth_B77 = torch.rand(2, 7, 7, generator=seeded(5))
    once, scaled = losses.grid(grid_B77, truth_B77 / 3).mean, losses.grid(grid_B77 * 40, truth_B77).mean
    assert torch.allclose(scaled, once, atol=1e-5)
    assert float(losses.grid(truth_B77 * 2, truth_B77).mean) == pytest.approx(0, abs=1e-5)


def test_map_loss_equals_the_loop_over_cells_that_count() -> None:
    logits = torch.randn(2, 1, 4, 5, generator=seeded(6)) * 3
    truth = torch.rand(2, 1, 4, 5, generator=seeded(7))
    weight = (torch.rand(2, 1, 4, 5, generator=seeded(8)) > 0.4).float()
    total = count = 0.0
    for logit, t, w in zip(logits.flatten().tolist(), truth.flatten().tolist(), weight.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-logit))
        total += w * -(t * math.log(p) + (1 - t) * math.log(1 - p))
        count += w
    assert float(losses.map_bce(logits, truth, weight).mean) == pytest.approx(total / count, abs=1e-5)
    assert float(losses.map_bce(logits, truth, torch.zeros_like(weight)).mean) == 0.0


def test_overlap_loss_equals_the_loop_over_manipulated_pairs() -> None:
    logits = torch.randn(4, 1, 6, 6, generator=seeded(9)) * 2
    truth = (torch.rand(4, 1, 6, 6, generator=seeded(10)) > 0.6).float()
    truth[3] = 0
    weight = torch.ones_like(truth)
    weight[:, :, :2] = 0
    label = torch.tensor([1, 0, 1, 1])
    terms = []
    for b in (0, 2):
        said, t = torch.sigmoid(logits[b]) * weight[b], truth[b] * weight[b]
        both = float((said * t).sum())
        terms.append(1 - both / (float(said.sum()) + float(t.sum()) - both))
    assert float(losses.map_overlap(logits, truth, weight, label).mean) == pytest.approx(sum(terms) / 2, abs=1e-5)
    assert float(losses.map_overlap(logits, truth, weight, torch.zeros(4)).mean) == 0.0


def test_map_truth_keeps_the_area() -> None:
    mask = (torch.rand(1, 1, 160, 160, generator=seeded(11)) > 0.7).float()
    for size in ((80, 80), (7, 7)):
        assert float(losses.map_truth(mask, size).mean()) == pytest.approx(float(mask.mean()), abs=0.01)
