"""Teaches a small NVILA from lessons: answers, descriptions and labelled cells in one loss, resumable and seeded.

Letters: B pictures, R rows of text, L their length, P positions of the head (picture and newlines), T tokens of a
picture, C width of the vision tower, D width of the decoder.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache

from bestofn.judge.nvila import Nvila
from bestofn.training.judge.examples import IGNORE, Batch, Collator, Lesson

Progress = Callable[[Mapping[str, float]], None]
"""Called with `step`, `steps`, `loss` and its parts, `seconds`, and with `accuracy` after a held-out score."""


OTHERS = 0.3
"""Learning rate of what is no matrix, as a share of the matrices'."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast a judge learns.

    Attributes:
        steps: updates.
        learning_rate: peak, of matrices under Muon; the rest learns under AdamW at `OTHERS` of it.
        warm_up: steps to the peak.
        decay: share of the run, at its end, over which the rate falls to nothing; 0 keeps it.
        describing: weight of the descriptions in the loss.
        labelling: weight of the cells in the loss.
        reduced: multiply matrices in bfloat16, quicker where the processor knows it; attention stays in float32.
        every: steps between two held-out scores, each with a checkpoint.
    """

    steps: int
    learning_rate: float = 1e-2
    warm_up: int = 60
    decay: float = 0.4
    describing: float = 0.5
    labelling: float = 0.5
    reduced: bool = False
    every: int = 100

    def rate(self, step: int) -> float:
        """Learning rate of a step: a ramp, a plateau, a ramp."""
        left = (self.steps - step) / max(1.0, self.decay * self.steps)
        return self.learning_rate * min(1.0, (step + 1) / self.warm_up, left)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: Any
) -> tuple[Tensor, None]:
    """Attention in float32 under autocast: its bfloat16 backward on a CPU is several times slower."""
    with torch.autocast(query.device.type, enabled=False):
        out = F.scaled_dot_product_attention(
            query.float(),
            key.float(),
            value.float(),
            attn_mask=attention_mask,
            is_causal=attention_mask is None,
            enable_gqa=key.shape[1] != query.shape[1],
        )
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register("float32_sdpa", _attention)


class Pupil(nn.Module):
    """An NVILA with a linear reader per label map on its vision tower, used while it learns only.

    Args:
        model: the judge.
        classes: number of labels of each map.
    """

    def __init__(self, model: Nvila, classes: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.readers = nn.ModuleList(nn.Linear(model.mm_projector.C, n) for n in classes)

    def forward(self, batch: Batch, head: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits where something is to be predicted, those targets' rows, and the labels of the cells.

        The picture is read once for all its rows: the head's keys and values are handed to each of them, which is
        the same as asking every question in a sequence of its own.

        Returns:
            (M, V) logits of the M targets, (M,) their rows, and (B, labels, h w) logits of all cells. A batch
            without rows is not shown to the decoder.
        """
        model, llm = self.model, self.model.llm
        seen = model.vision_tower(batch.pixels)  # (B, T', C)
        labels = torch.cat([reader(seen) for reader in self.readers], -1).transpose(1, 2)  # (B, labels, T')
        if not len(batch.owner):
            return seen.new_zeros(0, model.vocabulary), batch.owner, labels
        features = model.mm_projector(seen)  # (B, T, D)
        x, _ = model.embed([head] * len(features), features)  # (B, P, D)
        # The cache is passed by position: transformers 5.24 renamed its parameter from past_key_values to cache.
        cache = DynamicCache(config=llm.config)
        llm.model(None, {"full_attention": None}, None, cache, x, use_cache=True)
        cache.batch_select_indices(batch.owner)
        P, L = x.shape[1], batch.ids.shape[1]
        mask = torch.ones(L, P + L, dtype=torch.bool, device=x.device).tril(P)[None, None]
        positions = P + torch.arange(L, device=x.device)[None]
        words = llm.get_input_embeddings()(batch.ids)  # (R, L, D)
        h = llm.model(None, {"full_attention": mask}, positions, cache, words, use_cache=True)[0]  # (R, L, D)
        rows, places = (batch.targets != IGNORE).nonzero(as_tuple=True)
        return llm.lm_head(h[rows, places]), rows, labels

    def loss(self, batch: Batch, head: Sequence[int], plan: Plan) -> tuple[Tensor, dict[str, float]]:
        """The weighted sum of the three losses, and the figures it is made of."""
        logits, rows, labels = self(batch, head)
        wanted = batch.targets != IGNORE
        targets = batch.targets[wanted]
        words = F.cross_entropy(logits.float(), targets, reduction="none")  # (M,)
        answer = batch.answers[rows]
        weights = batch.weights[wanted] * answer
        total = torch.zeros(())
        figures: dict[str, float] = {}
        if bool(answer.any()):
            total = (words * weights).sum() / weights.sum()
            figures["answers"] = float(total.detach())
        if not bool(answer.all()):
            describing = words[~answer].mean()
            total = total + plan.describing * describing
            figures["describing"] = float(describing.detach())
        if bool((batch.cells != IGNORE).any()):
            sizes = [reader.out_features for reader in self.readers]
            maps = zip(labels.float().split(sizes, 1), batch.cells.flatten(2).unbind(1), strict=True)
            labelling = torch.stack([F.cross_entropy(z, y, ignore_index=IGNORE) for z, y in maps]).mean()
            total = total + plan.labelling * labelling
            figures["labelling"] = float(labelling.detach())
        return total, figures | {"loss": float(total.detach())}


def train(
    pupil: Pupil,
    plan: Plan,
    lessons: Callable[[int], Sequence[Lesson]],
    collate: Collator,
    score: Callable[[], float],
    run: Path,
    progress: Progress | None = None,
) -> None:
    """Runs the plan from where the folder `run` left off to its end.

    Args:
        pupil: learns in place.
        plan: of the whole run, the same when it is resumed.
        lessons: the batch of a step, a function of the step alone, so that a resumed run sees the same.
        collate: makes tensors of them.
        score: held-out accuracy of the model as it is; called in evaluation mode.
        run: folder of the checkpoint, made if need be.
        progress: see `Progress`.
    """
    run.mkdir(parents=True, exist_ok=True)
    path = run / "checkpoint.pt"
    optimizers = _optimizers(pupil, plan)
    begin, spent = _resume(path, pupil, optimizers)
    started = time.monotonic() - spent
    pupil.model.llm.config._attn_implementation = "float32_sdpa" if plan.reduced else "sdpa"
    for step in range(begin, plan.steps):
        pupil.train()
        for optimizer, share in zip(optimizers, (1.0, OTHERS), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = share * plan.rate(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=plan.reduced):
            loss, figures = pupil.loss(collate(lessons(step)), collate.head, plan)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(pupil.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        done = step + 1
        figures |= {"step": done, "steps": plan.steps, "seconds": time.monotonic() - started}
        if done % plan.every == 0 or done == plan.steps:
            pupil.eval()
            figures["accuracy"] = score()
            _save(path, pupil, optimizers, done, time.monotonic() - started)
        if progress is not None:
            progress(figures)


def _optimizers(pupil: Pupil, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the towers, AdamW for embeddings, readers, convolutions, norms and biases."""
    embedding = pupil.model.llm.get_input_embeddings().weight
    outside = {id(embedding), *(id(p) for p in pupil.readers.parameters())}
    matrices = [p for p in pupil.parameters() if p.ndim == 2 and id(p) not in outside]
    inside = {id(p) for p in matrices}
    rest = [p for p in pupil.parameters() if id(p) not in inside]
    muon = torch.optim.Muon(matrices, plan.learning_rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(rest, plan.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)]


def _save(path: Path, pupil: Pupil, optimizers: Sequence[torch.optim.Optimizer], step: int, seconds: float) -> None:
    state = {"pupil": pupil.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
    part = path.with_suffix(".part")
    torch.save(state | {"step": step, "seconds": seconds}, part)
    os.replace(part, path)


def _resume(path: Path, pupil: Pupil, optimizers: Sequence[torch.optim.Optimizer]) -> tuple[int, float]:
    if not path.is_file():
        return 0, 0.0
    state = torch.load(path, map_location="cpu", weights_only=True)
    pupil.load_state_dict(state["pupil"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"]), float(state["seconds"])
