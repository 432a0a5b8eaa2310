"""Measures CAME-8bit on one thread: `python -P evaluation/results/came8bit/measure.py WORK` starts or resumes.

A transformer of width 64 and four layers learns drawn scenes, with the shipped text encoder and autoencoder frozen.
WORK keeps latents. runs.jsonl gets one line for each figure; draw.py makes the tables of it.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import SanaTransformer2DModel
from torch import Tensor, nn

from bestofn.kernels.blockwise_quant import BLOCK, dequantise, quantise
from bestofn.models.checkpoint import EMBEDDED
from bestofn.models.linear_dit.config import LinearDiTConfig
from bestofn.models.linear_dit.model import LinearDiT
from bestofn.models.random_init.checkpoint import SANA_LAYOUTS
from bestofn.models.shapes.prompts import caption
from bestofn.training.generator.forward import flow_loss
from bestofn.training.generator.latent_cache import Latents, cached_latents
from bestofn.training.generator.pipeline import Parts, build_parts, load_parts
from bestofn.training.generator.trainer import noise_levels
from bestofn.training.optimizers.came8bit import CAME

LOG = Path(__file__).parent / "runs.jsonl"
WIDTH, LAYERS, BATCH, SCENES, HELD = 64, 4, 32, 3_072, 256
STEPS, WARMUP, DECAY, EVERY = 120, 30, 0.4, 12
SEEDS = (0, 1, 2)
# learning rates, by the loss of seed 0 after 80 steps: `sweep` in runs.jsonl
RATES = {"AdamW": 4e-3, "CAME": 1e-3, "CAME-8bit": 1e-3}
SWEEP = {"AdamW": (1e-3, 2e-3, 4e-3), "CAME": (1e-3, 2e-3)}
SWEEP_STEPS = 80
PUBLISHED_ROWS = 2_048

Optimizers = dict[str, Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]]
OPTIMIZERS: Optimizers = {
    "AdamW": lambda weights, rate: torch.optim.AdamW(weights, rate, (0.9, 0.98), weight_decay=0.01),
    "CAME": lambda weights, rate: CAME(weights, rate, weight_decay=0.01, bits=32),
    "CAME-8bit": lambda weights, rate: CAME(weights, rate, weight_decay=0.01),
}


def published(x: Tensor) -> Tensor:
    """There and back by SANA-1.5's scheme: 2,048 rows of a matrix share a minimum and a step, 1/255 of their range."""
    parts = []
    for rows in x.split(PUBLISHED_ROWS):
        low = rows.min()
        step = (rows.max() - low) / 255
        parts.append(((rows - low) / step).round() * step + low)
    return torch.cat(parts)


def linear(x: Tensor) -> Tensor:
    """There and back with equal steps from minus to plus the largest number of each block."""
    rows = nn.functional.pad(x.flatten(), (0, -x.numel() % BLOCK)).view(-1, BLOCK)
    step = rows.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
    return ((rows / step).round() * step).flatten()[: x.numel()].view(x.shape)


SCHEMES = {"ours": lambda x: dequantise(*quantise(x)), "linear, blocks of 256": linear, "published": published}


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Of the tensors of the weights' sizes and of their rows; not the step counters."""
    tensors = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    return sum(t.nbytes for t in tensors if t.ndim)


def measure_memory() -> None:
    models = {}
    for name in ("sana1.5-1.6b", "sana1.5-4.8b"):
        with torch.device("meta"):
            models[name] = list(LinearDiT(LinearDiTConfig.from_dict(SANA_LAYOUTS[name]["transformer"])).parameters())
    models["shapes"] = [p for module in load_parts(EMBEDDED["shapes"]).modules for p in module.parameters()]
    for name, weights in models.items():
        for p in weights:
            p.grad = torch.randn_like(p)
        for kind, build in OPTIMIZERS.items():
            optimizer = build(weights, 1e-9)
            optimizer.step()
            count, size = sum(p.numel() for p in weights), state_bytes(optimizer)
            figures: dict[str, object] = {"arm": "memory", "model": name, "optimizer": kind}
            if name == "shapes":
                began = time.process_time()
                for _ in range(5):
                    optimizer.step()
                figures["step_ms"] = round((time.process_time() - began) * 200, 1)
            log(figures | {"parameters": count, "bytes": size})


def errors(moments: Iterable[Tensor]) -> dict[str, dict[str, float]]:
    """By scheme: root mean square error over root mean square, and the share of numbers of the wrong or no sign."""
    out = {}
    whole = list(moments)
    for name, there_and_back in SCHEMES.items():
        lost = total = turned = count = 0.0
        for m in whole:
            back = there_and_back(m)
            lost, total = lost + float((back - m).square().sum()), total + float(m.square().sum())
            turned, count = turned + float((back.sign() != m.sign()).sum()), count + m.numel()
        out[name] = {"error": (lost / total) ** 0.5, "sign": turned / count}
    return out


def measure_sizes() -> None:
    """At the size of SANA-1.5's FFN, where 2,048 rows are 4.6 million numbers: normal numbers, and with heavy tails."""
    torch.manual_seed(0)
    normal = torch.randn(5_600, 2_240)
    tails = torch.from_numpy(np.random.default_rng(0).standard_t(5, normal.shape)).float()
    for name, numbers in (("normal", normal), ("Student's t, 5 degrees", tails)):
        log({"arm": "size", "numbers": name, "shape": list(numbers.shape), "errors": errors([numbers])})


class Scenes:
    """Scenes as latents, the shipped text encoder, and batches of both."""

    def __init__(self, work: Path) -> None:
        self.parts: Parts = load_parts(EMBEDDED["shapes"])
        for module in (self.parts.text_encoder, self.parts.vae):
            module.eval()
        self.latents: Latents = cached_latents(work / "latents.pt", self.parts.vae, SCENES + HELD, (5,))

    def loss(self, model: SanaTransformer2DModel, picks: np.ndarray, rng: np.random.Generator) -> Tensor:
        prompts = [caption(rng, self.latents.wish(int(k))).prompt if rng.random() > 0.1 else "" for k in picks]
        with torch.no_grad():
            text, mask = self.parts.encode(prompts)
        x = self.latents.values[picks].float()
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(int(rng.integers(2**62))))
        return flow_loss(model, x, noise, noise_levels(len(x), rng), text, mask)[0]

    @torch.no_grad()
    def held_out(self, model: SanaTransformer2DModel) -> float:
        """On scenes, captions and noise that are always the same."""
        return float(self.loss(model, np.arange(SCENES, SCENES + HELD), np.random.default_rng(9)))


def train(
    world: Scenes, kind: str, seed: int, rate: float, steps: int
) -> Iterator[tuple[int, SanaTransformer2DModel, torch.optim.Optimizer]]:
    torch.manual_seed(seed)
    model = build_parts(world.parts.vae, WIDTH, LAYERS).transformer
    optimizer = OPTIMIZERS[kind](model.parameters(), rate)
    for step in range(steps):
        rng = np.random.default_rng((seed, step))
        world.loss(model, rng.integers(SCENES, size=BATCH), rng).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / WARMUP, (steps - step) / (DECAY * steps))
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % EVERY == 0 or step + 1 == steps:
            yield step + 1, model, optimizer


def done() -> list[dict[str, object]]:
    return [json.loads(line) for line in LOG.read_text().splitlines()] if LOG.exists() else []


def log(*lines: dict[str, object]) -> None:
    with LOG.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def measure_training(world: Scenes, arm: str, kind: str, seed: int, rate: float, steps: int) -> None:
    """One run, unless its last line is there."""
    name: dict[str, object] = {"arm": arm, "optimizer": kind, "seed": seed, "rate": rate}
    if any(name.items() <= line.items() for line in done()):
        return
    began, lines = time.process_time(), []
    for step, model, optimizer in train(world, kind, seed, rate, steps):
        if arm == "curve" or step == steps:
            lines.append(name | {"step": step, "loss": world.held_out(model)})
        if (arm, kind) == ("curve", "CAME") and step in (2 * EVERY, steps // 2, steps):
            moments = [s["moment"] for s in optimizer.state.values() if "row" in s and s["moment"].numel() >= 4_096]
            lines.append({"arm": "error", "seed": seed, "step": step, "errors": errors(moments)})
    log(*lines)
    sys.stderr.write(f"{lines[-1]}, {time.process_time() - began:.0f} s of processor\n")


def main() -> None:
    torch.set_num_threads(1)
    work = Path(sys.argv[1])
    work.mkdir(parents=True, exist_ok=True)
    if not any(line["arm"] == "memory" for line in done()):
        measure_memory()
    if not any(line["arm"] == "size" for line in done()):
        measure_sizes()
    world = Scenes(work)
    for kind, rates in SWEEP.items():
        for rate in rates:
            measure_training(world, "sweep", kind, 0, rate, SWEEP_STEPS)
    if sys.argv[2:] == ["sweep"]:
        return
    for seed in SEEDS:
        for kind, rate in RATES.items():
            measure_training(world, "curve", kind, seed, rate, STEPS)


if __name__ == "__main__":
    main()
