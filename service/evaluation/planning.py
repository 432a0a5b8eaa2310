"""How much a plan that was made on other prompts falls short of the best fixed strategy in hindsight. Pure numpy.

K strategies, P prompts, X budgets.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bestofn.service.evaluation.stats import Floats, Prompts

BUDGETS = 12


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

    A plan is the best score within the budget on average; so is the choice in hindsight, which knows the half that it
    is measured on and is therefore better by chance alone, too.

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


def _best(score: Floats, cost: Floats, tags: Sequence[str], budget: float) -> int:
    prompts = Prompts(tags)
    means = [(prompts.mean(score[k]), prompts.mean(cost[k])) for k in range(len(score))]
    within = [k for k, (_, price) in enumerate(means) if price <= budget] or [int(np.argmin([p for _, p in means]))]
    return max(within, key=lambda k: (means[k][0], -means[k][1]))
