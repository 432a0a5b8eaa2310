"""Trains the shapes generator: flow matching on cached latents, with the text encoder, on one or more processes.

Axes: B samples, N tokens, D width.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import AutoencoderDC
from torch import Tensor, nn

from bestofn.models.shapes.prompts import caption, sample_prompt
from bestofn.models.shapes.world import COLOURS, SHAPES
from bestofn.training.distributed import rank_and_ranks
from bestofn.training.generator.forward import flow_loss
from bestofn.training.generator.latent_cache import Latents, cached_latents
from bestofn.training.generator.pipeline import FLOW_SHIFT, Parts, build_parts, load_parts
from bestofn.training.generator.text_encoder import LayoutHead, layout
from bestofn.training.optimizers import Name
from bestofn.training.optimizers.factory import Scheduled, build_optimizer
from bestofn.training.runs import Progress, Run

PROMPT_TAGS = ("colors", "counting", "counting_color", "two_object", "color_attr", "position", "position_color")
TEXT_BATCH = 192  # prompts of the text encoder's warm-up


@dataclass(frozen=True)
class GeneratorSettings:
    """One generator run. `steps` counts optimizer steps; the last `decay_share` of them lower the rate to zero.

    A run may go on with more steps than it was started with: until the decay the rate is constant.
    """

    folder: Path
    vae: Path
    steps: int
    decay_share: float = 0.4
    seed: int = 0
    batch_size: int = 128  # a process, a forward
    accumulate: int = 1  # forwards of an update
    scenes: int = 80_000  # a process
    width: int = 128
    layers: int = 6
    optimizer: Name = "muon"
    matrix_rate: float = 4e-3
    other_rate: float = 3e-3
    warmup_steps: int = 100
    text_steps: int = 600
    caption_dropout: float = 0.1
    label_weight: float = 0.2
    layout_weight: float = 0.1
    ema: float = 0.999
    low_precision: bool = False
    save_every: int = 200
    start: Path | None = None  # a shapes checkpoint to go on from, whose shape then counts; None: fresh weights

    @property
    def dtype(self) -> torch.dtype:
        """Of matrix products."""
        return torch.bfloat16 if self.low_precision else torch.float32


def further(settings: GeneratorSettings, start: Path) -> GeneratorSettings:
    """The same run from a trained checkpoint: its autoencoder, no warm-up, no loss that only helps at the beginning."""
    return dataclasses.replace(
        settings, start=start, vae=start / "vae", text_steps=0, label_weight=0.0, layout_weight=0.0
    )


class LabelHead(nn.Module):
    """Reads shape and colour of every token off the middle of the transformer; training only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, len(SHAPES) + len(COLOURS) + 2))

    def forward(self, tokens: Tensor, shapes: Tensor, colours: Tensor) -> Tensor:
        """Mean cross-entropy over tokens (B, N, D), background at a quarter of the weight."""
        logits = self.out(F.layer_norm(tokens, tokens.shape[-1:])).flatten(0, 1)
        total = torch.zeros(())
        for part, target in zip(
            torch.split(logits, [len(SHAPES) + 1, len(COLOURS) + 1], -1), (shapes, colours), strict=True
        ):
            weight = torch.ones(part.shape[-1])
            weight[0] = 0.25
            total = total + F.cross_entropy(part, target.flatten().long(), weight)
        return total


@dataclass
class TrainState:
    """What one process trains: the parts, the heads that only training needs, the optimizer, the running mean."""

    parts: Parts
    heads: nn.ModuleDict
    optimizer: Scheduled
    mean: list[Tensor]

    @property
    def weights(self) -> list[nn.Parameter]:
        """Parameters of the shipped modules, in a fixed order."""
        return [p for module in self.parts.modules for p in module.parameters()]

    @property
    def stateful(self) -> dict[str, Any]:
        """What a run's checkpoint keeps the state of."""
        modules = {"transformer": self.parts.transformer, "text": self.parts.text_encoder, "heads": self.heads}
        return modules | {"optimizer": self.optimizer}

    def averaged(self) -> Parts:
        """A copy of the parts with the running mean of the weights."""
        text_encoder, transformer = copy.deepcopy(self.parts.text_encoder), copy.deepcopy(self.parts.transformer)
        out = Parts(self.parts.tokenizer, text_encoder.eval(), transformer.eval(), self.parts.vae)
        targets = [p for module in out.modules for p in module.parameters()]
        with torch.no_grad():
            for target, value in zip(targets, self.mean, strict=True):
                target.copy_(value)
        return out


def build_train_state(settings: GeneratorSettings) -> TrainState:
    """Fresh weights from the seed, or those to go on from; Muon takes the matrices inside blocks, AdamW the rest."""
    torch.manual_seed(settings.seed)
    if settings.start:
        parts = load_parts(settings.start)
    else:
        parts = build_parts(AutoencoderDC.from_pretrained(settings.vae), settings.width, settings.layers)
    parts.vae.eval()
    text_width = parts.text_encoder.config.hidden_size
    heads = nn.ModuleDict(
        {"labels": LabelHead(parts.transformer.proj_out.in_features), "layout": LayoutHead(text_width)}
    )
    inner = [*parts.transformer.transformer_blocks.parameters(), *parts.text_encoder.layers.parameters()]
    inner += list(parts.transformer.caption_projection.parameters())
    matrices = [p for p in inner if p.ndim >= 2 and p[0].numel() > 9 and p.shape[0] > 6]
    everything = [p for module in (*parts.modules, heads) for p in module.parameters()]
    rates = settings.matrix_rate, settings.other_rate
    optimizer = build_optimizer(
        settings.optimizer, matrices, everything, *rates, weight_decay=0.01, dtype=settings.dtype
    )
    mean = [p.detach().clone() for module in parts.modules for p in module.parameters()]
    return TrainState(parts, heads, optimizer, mean)


def noise_levels(n: int, rng: np.random.Generator) -> Tensor:
    """Stratified uniform times under the flow shift; the colour of a flat object is decided above 0.9.  # (B)"""
    u = (rng.permutation(n) + rng.random(n)) / n
    return torch.from_numpy(FLOW_SHIFT * u / (1 + (FLOW_SHIFT - 1) * u)).float()


def text_step(state: TrainState, rng: np.random.Generator) -> Tensor:
    """Warm-up of the text encoder alone: say where what is, from the prompt's last token."""
    specs = [sample_prompt(rng, PROMPT_TAGS[int(rng.integers(len(PROMPT_TAGS)))]) for _ in range(TEXT_BATCH)]
    text, mask = state.parts.encode([spec.prompt for spec in specs])
    loss: Tensor = state.heads["layout"](text, mask, torch.tensor([layout(spec) for spec in specs]))
    return loss


def flow_step(
    state: TrainState, settings: GeneratorSettings, latents: Latents, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Loss to minimise, and the flow-matching part of it."""
    picks = rng.integers(len(latents.values), size=settings.batch_size)
    specs = [caption(rng, latents.wish(int(k))) for k in picks]
    dropped = rng.random(len(specs)) < settings.caption_dropout
    text, mask = state.parts.encode(["" if gone else spec.prompt for spec, gone in zip(specs, dropped, strict=True)])
    kept = torch.from_numpy(~dropped)
    target = torch.tensor([layout(spec) for spec in specs])
    layout_loss = state.heads["layout"](text[kept], mask[kept], target[kept])
    x = latents.values[picks].float()
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    noise = torch.randn(x.shape, generator=generator)
    sigma = noise_levels(len(x), rng)
    transformer = state.parts.transformer
    tap = len(transformer.transformer_blocks) // 2
    flow, tokens = flow_loss(transformer, x, noise, sigma, text, mask, settings.dtype, tap)
    labels = state.heads["labels"](tokens, latents.shapes[picks], latents.colours[picks])
    return flow + settings.label_weight * labels + settings.layout_weight * layout_loss, flow.detach()


@torch.no_grad()
def conditioning(state: TrainState, latents: Latents) -> dict[str, float]:
    """Loss with shuffled captions less the loss with the right ones, at four noise levels: what the words are worth."""
    n = min(48, len(latents.values))
    rng = np.random.default_rng(1)
    specs = [caption(rng, latents.wish(k)) for k in range(n)]
    text, mask = state.parts.encode([spec.prompt for spec in specs])
    x = latents.values[:n].float()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    out = {}
    for level in (0.3, 0.6, 0.8, 0.95):
        sigma = torch.full((n,), level)
        losses = [
            float(flow_loss(state.parts.transformer, x, noise, sigma, text.roll(shift, 0), mask.roll(shift, 0))[0])
            for shift in (0, 1)
        ]
        out[f"loss@{level}"], out[f"gap@{level}"] = losses[0], losses[1] - losses[0]
    return out


def _synchronise(parameters: list[nn.Parameter], ranks: int) -> None:
    """Mean gradient over processes, in one flat message."""
    live = [p for p in parameters if p.grad is not None]
    flat = torch.cat([p.grad.flatten() for p in live if p.grad is not None])
    dist.all_reduce(flat)
    flat /= ranks
    for p, part in zip(live, torch.split(flat, [p.numel() for p in live]), strict=True):
        p.grad = part.view_as(p)


def rate(step: int, settings: GeneratorSettings) -> float:
    """Warm-up, constant, linear decay to zero."""
    left = (settings.steps - step) / max(1.0, settings.decay_share * settings.steps)
    return min(1.0, (step + 1) / settings.warmup_steps, left)


def train_generator(settings: GeneratorSettings, progress: Progress) -> TrainState:
    """Train, or go on training, the generator of a run folder.

    Inside an initialised `torch.distributed` group every process draws its own scenes and gradients are averaged; only
    rank 0 writes. A resumed run goes on bit by bit: every step's randomness comes from (seed, rank, step) alone.
    """
    rank, ranks = rank_and_ranks()
    run = Run(settings.folder)
    state = build_train_state(settings)
    saved = run.resume(state.stateful)
    step, state.mean = saved.get("step", 0), saved.get("mean", state.mean)
    cache = settings.folder.parent / f"latents-{settings.vae.parent.name}-{rank}.pt"
    latents = cached_latents(cache, state.parts.vae, settings.scenes, (settings.seed, 7, rank))
    parameters = state.optimizer.parameters
    smoothed = 0.0
    for module in (*state.parts.modules, state.heads):
        module.train()
    while step < settings.steps + settings.text_steps:
        rng = np.random.default_rng((settings.seed, rank, step))
        warm = step < settings.text_steps
        flow = torch.zeros(())
        for _ in range(settings.accumulate):
            if warm:
                loss = text_step(state, rng)
                part = loss.detach()
            else:
                loss, part = flow_step(state, settings, latents, rng)
            torch.autograd.backward(loss / settings.accumulate)
            flow += part / settings.accumulate
        scale = min(1.0, (step + 1) / settings.warmup_steps) if warm else rate(step - settings.text_steps, settings)
        if ranks > 1:
            _synchronise(parameters, ranks)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        state.optimizer.step(scale)
        keep = min(settings.ema, (1 + step - settings.text_steps) / (20 + step)) if not warm else 0.0
        with torch.no_grad():
            torch._foreach_lerp_(state.mean, list(state.weights), 1 - keep)
        step += 1
        fresh = smoothed == 0 or step == settings.text_steps + 1
        smoothed = float(flow) if fresh else 0.98 * smoothed + 0.02 * float(flow)
        done = step == settings.steps + settings.text_steps
        if rank == 0 and (done or step % settings.save_every == 0):
            figures = {"step": step - settings.text_steps, "steps": settings.steps, "loss": smoothed}
            progress(figures)
            run.log(**figures, ranks=ranks, rate=scale, **({} if warm else conditioning(state, latents)))
            run.save(state.stateful | {"mean": state.mean, "step": step})
    return state
