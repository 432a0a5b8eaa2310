"""Regret of strategies on prompts that they were not chosen on: plans for a budget, presets. Pure numpy.

K strategies, P prompts, X budgets.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bestofn.evaluation.stats import Floats, Prompts

BUDGETS = 12
SPLITS = 20
MOST_LOSS = 0.02  # maximum loss of a preset against its reference


@dataclass(frozen=True)
class Regret:
    """In score, averaged over budgets from the cheapest strategy's cost to the dearest's.

    Attributes:
        mean: over prompts, by categories.
        interval: 95 % over prompts.
        by_budget: (budget, mean) each.
    """

    mean: float
    interval: tuple[float, float]
    by_budget: list[tuple[float, float]]


def regret(score: Floats, cost: Floats, tags: Sequence[str]) -> Regret:
    """Plans are made on one half of each category's prompts and measured on the other, and the other way round.

    A plan has the best average score within the budget. The choice in hindsight is made on the half that it is
    measured on, so it is better partly by chance.

    Args:
        score, cost: (K, P).
        tags: (P,), categories.
    """
    P = len(tags)
    order = np.empty(P, int)
    for tag in dict.fromkeys(tags):
        members = np.flatnonzero(np.array(tags) == tag)
        order[members] = np.arange(len(members))
    budgets = np.geomspace(cost.mean(1).min(), cost.mean(1).max(), BUDGETS)
    short = np.empty((BUDGETS, P))
    for half in (0, 1):
        fit, test = np.flatnonzero(order % 2 == half), np.flatnonzero(order % 2 != half)
        for row, budget in enumerate(budgets):
            planned, hindsight = (
                _best(score[:, part], cost[:, part], [tags[i] for i in part.tolist()], budget) for part in (fit, test)
            )
            short[row, test] = score[hindsight, test] - score[planned, test]
    prompts = Prompts(tags)
    average = short.mean(0)
    return Regret(
        prompts.mean(average),
        prompts.interval(average),
        [(float(budget), prompts.mean(row)) for budget, row in zip(budgets, short, strict=True)],
    )


@dataclass(frozen=True)
class Preset:
    """The cheapest strategy that loses little, chosen on one half of the prompts and measured on the other.

    Attributes:
        loss: mean over prompts, by categories; averaged over the splits.
        upper_bound: one-sided 95 % over prompts.
        cost: mean over prompts, by categories.
    """

    loss: float
    upper_bound: float
    cost: float


def preset(loss: Floats, cost: Floats, tags: Sequence[str], most: float) -> Preset:
    """Prompts are halved at random, within their categories, and each half chooses for the other.

    Args:
        loss: (K, P), in score against what is to be reached; one row is that itself, with none.
        cost: (K, P).
        tags: (P,), categories.
        most: one-sided 95 % bound of the loss, on the half that chooses.
    """
    P = len(tags)
    rng = np.random.default_rng(0)
    lost, spent = np.zeros(P), np.zeros(P)
    for _ in range(SPLITS):
        first = np.zeros(P, bool)
        for tag in dict.fromkeys(tags):
            members = rng.permutation(np.flatnonzero(np.array(tags) == tag))
            first[members[: len(members) // 2]] = True
        for fit in (first, ~first):
            prompts = Prompts([tag for tag, there in zip(tags, fit.tolist(), strict=True) if there])
            cheapest_first = sorted(range(len(loss)), key=lambda k: prompts.mean(cost[k, fit]))
            k = next(k for k in cheapest_first if prompts.upper_bound(loss[k, fit]) <= most)
            lost[~fit] += loss[k, ~fit] / SPLITS
            spent[~fit] += cost[k, ~fit] / SPLITS
    prompts = Prompts(tags)
    return Preset(prompts.mean(lost), prompts.upper_bound(lost), prompts.mean(spent))


def _best(score: Floats, cost: Floats, tags: Sequence[str], budget: float) -> int:
    prompts = Prompts(tags)
    means = [(prompts.mean(score[k]), prompts.mean(cost[k])) for k in range(len(score))]
    within = [k for k, (_, price) in enumerate(means) if price <= budget] or [int(np.argmin([p for _, p in means]))]
    return max(within, key=lambda k: (means[k][0], -means[k][1]))
