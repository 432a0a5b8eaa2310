"""The ranking loss: within groups alone, zero gradient for what is not ranked, lower for a better order."""

from __future__ import annotations

import math

import pytest
import torch

from bestofn.training.judge.examples import NO_GROUP
from bestofn.training.judge.losses import ranking_loss

RIGHT = torch.tensor([True, False, True, False, True])
GROUPS = torch.tensor([0, 0, 1, 1, NO_GROUP])


def test_a_pair_costs_the_logistic_loss_of_its_difference() -> None:
    margins = torch.tensor([2.0, 0.5])
    pairwise = math.log1p(math.exp(-1.5))
    loss, ordered = ranking_loss(margins, RIGHT[:2], GROUPS[:2], listwise=0.5)
    # In a group of two the softmax over the group has the same value.
    assert loss.item() == pytest.approx(1.5 * pairwise, abs=1e-6)
    assert ordered == 1.0


def test_groups_are_ranked_apart_and_ungrouped_rows_have_no_gradient() -> None:
    margins = torch.tensor([1.0, -1.0, -3.0, 3.0, 0.0], requires_grad=True)
    loss, ordered = ranking_loss(margins, RIGHT, GROUPS, listwise=0.0)
    first, second = math.log1p(math.exp(-2.0)), math.log1p(math.exp(6.0))
    assert loss.item() == pytest.approx((first + second) / 2, abs=1e-5)
    assert ordered == 0.5
    loss.backward()  # type: ignore[no-untyped-call]
    assert margins.grad is not None
    assert margins.grad[4] == 0
    assert margins.grad[2] < 0 < margins.grad[3]


def test_the_listwise_part_counts_the_best_wrong_one() -> None:
    right, groups = torch.tensor([True, False, False]), torch.zeros(3, dtype=torch.long)
    easy, hard = torch.tensor([1.0, -9.0, 0.9]), torch.tensor([1.0, 0.9, 0.9])
    losses = [float(ranking_loss(margins, right, groups, listwise=1.0)[0]) for margins in (easy, hard)]
    assert losses[0] < losses[1]


def test_without_both_answers_there_is_nothing_to_rank() -> None:
    loss, ordered = ranking_loss(torch.tensor([1.0, 2.0]), torch.tensor([True, True]), torch.tensor([0, 0]), 0.5)
    assert loss.item() == 0
    assert math.isnan(ordered)
