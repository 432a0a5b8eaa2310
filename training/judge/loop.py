"""Training loop of a small NVILA: seeded, resumable, with a checkpoint at every held-out score.

Axes of the data: B images, R rows of text, L their length, M target positions.
Axes of the model: T tokens of an image, P positions of the head, C width of the vision tower, D width of the decoder.
The head is the image's tokens and a newline.
"""

from __future__ import annotations

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
from bestofn.training.judge.examples import IGNORE, Batch, Collator, ImageExample
from bestofn.training.judge.losses import total_loss
from bestofn.training.optimizers.factory import Scheduled, build_optimizer
from bestofn.training.runs import Progress, Run

OTHER_RATE = 0.3
"""Learning rate of parameters that are not matrices, as a share of the matrices'."""


@dataclass(frozen=True)
class Schedule:
    """Length, learning rate and precision of one stage.

    Attributes:
        steps: number of updates.
        learning_rate: peak learning rate of matrices under Muon; the rest has `OTHER_RATE` of it under AdamW.
        warmup_steps: updates until the peak.
        decay: share of the stage, at its end, over which the rate falls to zero; 0 keeps it.
        low_precision: whether matrix products are computed in bfloat16; attention stays in float32.
        save_every: updates between two held-out scores, each with a checkpoint.
    """

    steps: int
    learning_rate: float = 1e-2
    warmup_steps: int = 60
    decay: float = 0.4
    low_precision: bool = False
    save_every: int = 100

    def scale(self, step: int) -> float:
        """Share of the peak at a step: a ramp, a plateau, a ramp."""
        left = (self.steps - step) / max(1.0, self.decay * self.steps)
        return min(1.0, (step + 1) / self.warmup_steps, left)


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


class JudgeTrainingModel(nn.Module):
    """An NVILA with a linear reader per label map on its vision tower; the readers exist in training alone.

    Args:
        model: the judge; all its parameters are set to be trained.
        classes: number of classes of each label map.
    """

    def __init__(self, model: Nvila, classes: Sequence[int]) -> None:
        super().__init__()
        self.model = model.requires_grad_(True)  # a loaded judge is frozen
        self.readers = nn.ModuleList(nn.Linear(model.mm_projector.C, n) for n in classes)

    @property
    def classes(self) -> list[int]:
        """Number of classes of each label map."""
        return [int(reader.out_features) for reader in self.readers]  # type: ignore[arg-type]

    def forward(self, batch: Batch, head: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Logits at the target positions, in row-major order, and of the label maps.

        The image is read once for all its rows, which reuse the head's keys and values. The result equals that of a
        separate sequence for every question.

        Returns:
            (M, V) logits of tokens and (B, sum of classes, h w) logits of the cells. The decoder does not run for a
            batch without rows.
        """
        model, llm = self.model, self.model.llm
        seen = model.vision_tower(batch.pixels)  # (B, T', C)
        labels = torch.cat([reader(seen) for reader in self.readers], -1).transpose(1, 2)  # (B, classes, T')
        if not len(batch.owner):
            return seen.new_zeros(0, model.vocabulary), labels
        features = model.mm_projector(seen)  # (B, T, D)
        x, _ = model.embed([head] * len(features), features)  # (B, P, D)
        # The cache is passed by position: its name differs between versions of transformers.
        cache = DynamicCache(config=llm.config)
        llm.model(None, {"full_attention": None}, None, cache, x, use_cache=True)
        cache.batch_select_indices(batch.owner)
        P, L = x.shape[1], batch.ids.shape[1]
        mask = torch.ones(L, P + L, dtype=torch.bool, device=x.device).tril(P)[None, None]
        positions = P + torch.arange(L, device=x.device)[None]
        embedded = llm.get_input_embeddings()(batch.ids)
        h = llm.model(None, {"full_attention": mask}, positions, cache, embedded, use_cache=True)[0]  # (R, L, D)
        return llm.lm_head(h[batch.targets != IGNORE]), labels

    def loss(self, batch: Batch, collate: Collator) -> tuple[Tensor, dict[str, float]]:
        """The weighted sum of the losses, and each of them by name."""
        logits, labels = self(batch, collate.head)
        yes_no = collate.question.yes_id, collate.question.no_id
        return total_loss(logits, labels, batch, self.classes, yes_no)


def train(
    model: JudgeTrainingModel,
    schedule: Schedule,
    examples: Callable[[int], Sequence[ImageExample]],
    collate: Collator,
    score: Callable[[], Mapping[str, float]],
    folder: Path,
    progress: Progress | None = None,
) -> float:
    """Run a schedule to its end, from the last checkpoint of its folder.

    Args:
        model: trained in place; after an interrupted run its weights come from the checkpoint.
        schedule: the same when a run is resumed.
        examples: examples of a step; a function of the step alone, so that a resumed run sees the same.
        collate: makes tensors of them.
        score: held-out score of the model, called in evaluation mode.
        folder: folder of the checkpoint and of `log.jsonl`.
        progress: called after every update with `step`, `steps`, `loss` and its parts, and with the score.

    Returns:
        Seconds of training, those before an interruption included.
    """
    run = Run(folder)
    dtype = torch.bfloat16 if schedule.low_precision else torch.float32
    optimizer = _optimizer(model, schedule.learning_rate, dtype)
    parts = {"model": model, "optimizer": optimizer}
    saved = run.resume(parts)
    begin, spent = int(saved.get("step", 0)), float(saved.get("seconds", 0))
    started = time.monotonic() - spent
    model.model.llm.config._attn_implementation = "float32_sdpa" if schedule.low_precision else "sdpa"
    for step in range(begin, schedule.steps):
        model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=schedule.low_precision):
            loss, figures = model.loss(collate(examples(step)), collate)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(schedule.scale(step))
        done = step + 1
        figures |= {"step": done, "steps": schedule.steps}
        if done % schedule.save_every == 0 or done == schedule.steps:
            model.eval()
            figures |= score()
            seconds = time.monotonic() - started
            run.log(training_seconds=round(seconds, 1), **figures)
            run.save(parts | {"step": done, "seconds": seconds})
        if progress is not None:
            progress(figures)
    model.eval()
    return time.monotonic() - started if begin < schedule.steps else spent


def _optimizer(model: JudgeTrainingModel, rate: float, dtype: torch.dtype) -> Scheduled:
    """Muon for the matrices inside the towers, AdamW for embeddings, readers, convolutions, norms and biases."""
    embedding = model.model.llm.get_input_embeddings().weight
    outside = {id(embedding), *(id(p) for p in model.readers.parameters())}
    matrices = [p for p in model.parameters() if p.ndim == 2 and id(p) not in outside]
    return build_optimizer("muon", matrices, model.parameters(), rate, OTHER_RATE * rate, 0.02, dtype)
