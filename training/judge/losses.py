"""Losses of a judge in training: answers, ranking within groups, descriptions and label maps.

Axes: M target positions, V tokens, R rows of text, B images, K label maps, c cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bestofn.training.judge.examples import IGNORE, NO_GROUP, Batch

LISTWISE, DESCRIBING, LABELLING = 0.5, 0.5, 0.5
"""Weights of the listwise part of ranking, of descriptions and of label maps; answers and ranking have weight 1."""


def ranking_loss(margins: Tensor, right: Tensor, groups: Tensor, listwise: float) -> tuple[Tensor, float]:
    """Loss of the order within groups: right answers above wrong ones, in pairs and as a list.

    The pairwise part is the mean logistic loss over all (right, wrong) pairs of a group. The listwise part is the
    negative log-probability, under a softmax over the group, that a right one is chosen.

    Args:
        margins: (R,), log-odds of yes.
        right: (R,), whether yes is the right answer.
        groups: (R,), NO_GROUP for rows outside any group.
        listwise: weight of the listwise part.

    Returns:
        The mean over groups with both answers, 0 where there are none, and the share of pairs in the right order.
    """
    losses, ordered = [], []
    for group in sorted(set(groups.tolist()) - {NO_GROUP}):
        inside = groups == group
        above, below = margins[inside & right], margins[inside & ~right]
        if not len(above) or not len(below):
            continue
        differences = above[:, None] - below[None, :]
        chosen = F.logsigmoid(torch.logsumexp(above, 0) - torch.logsumexp(below, 0))
        losses.append(F.softplus(-differences).mean() - listwise * chosen)
        ordered.append(float((differences > 0).float().mean()))
    if not losses:
        return margins.sum() * 0, float("nan")
    return torch.stack(losses).mean(), sum(ordered) / len(ordered)


def total_loss(
    logits: Tensor,
    labels: Tensor,
    batch: Batch,
    classes: Sequence[int],
    yes_no: tuple[int, int],
) -> tuple[Tensor, dict[str, float]]:
    """Weighted sum of all losses that the batch has targets for.

    Args:
        logits: (M, V), at the batch's targets in row-major order.
        labels: (B, sum of classes, c), logits of the label maps.
        batch: targets.
        classes: (K,), number of classes of each label map.
        yes_no: token ids of the two answers.

    Returns:
        The sum, and every loss by name, with "ordered", the share of ranked pairs in the right order.
    """
    total = labels.new_zeros((), dtype=torch.float32)
    figures: dict[str, float] = {}

    def add(name: str, weight: float, loss: Tensor) -> None:
        nonlocal total
        total = total + weight * loss
        figures[name] = float(loss.detach())

    rows, positions = (batch.targets != IGNORE).nonzero(as_tuple=True)
    words = F.cross_entropy(logits.float(), batch.targets[rows, positions], reduction="none")  # (M,)
    asked = batch.questions[rows]
    if bool(asked.any()):
        shares = batch.weights[rows, positions] * asked
        add("answers", 1.0, (words * shares).sum() / shares.sum())
        final = asked & (positions == batch.answer_position[rows])
        yes, no = yes_no
        margins, of = (logits[final, yes] - logits[final, no]).float(), rows[final]
        ranking, ordered = ranking_loss(margins, batch.satisfied[of], batch.groups[of], LISTWISE)
        if ordered == ordered:
            add("ranking", 1.0, ranking)
            figures["ordered"] = ordered
    if bool((~asked).any()):
        add("describing", DESCRIBING, words[~asked].mean())
    if bool((batch.cells != IGNORE).any()):
        maps = zip(torch.split(labels.float(), list(classes), 1), batch.cells.flatten(2).unbind(1), strict=True)
        each = [F.cross_entropy(z, y, ignore_index=IGNORE) for z, y in maps]
        add("labelling", LABELLING, torch.stack(each).sum())
    return total, figures | {"loss": float(total.detach())}
