"""Measures growth and pruning on one thread: `python evaluation/results/growth/measure.py WORK` starts or resumes.

Growth: a transformer of width 64 learns scenes of one object of twelve kinds. One grown model is then pruned, and so is
the shipped checkpoint. WORK keeps weights; runs.jsonl gets one line for each figure.
"""

import copy
import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import SanaPipeline, SanaTransformer2DModel
from torch import Tensor

from bestofn.models.checkpoint import EMBEDDED, Checkpoint
from bestofn.models.depth.growth import Method, grow
from bestofn.models.depth.pruning import block_importance, calibration_prompts, kept_blocks, prune
from bestofn.models.generator import Generator
from bestofn.models.shapes.evaluator import evaluate
from bestofn.models.shapes.prompts import single
from bestofn.models.shapes.scenes import Wish, place, trainable
from bestofn.models.shapes.world import render
from bestofn.training.generator.forward import flow_loss
from bestofn.training.generator.pipeline import Parts, build_parts, load_parts, sample, save_pipeline, score, spread
from bestofn.training.generator.recovery import recover
from bestofn.training.generator.trainer import noise_levels
from bestofn.training.optimizers.factory import build_optimizer

LOG = Path(__file__).parent / "runs.jsonl"
WIDTH, SHALLOW, DEEP, BATCH = 64, 4, 8, 32
SOURCE_STEPS, LONGER_STEPS, STEPS, WARMUP = 800, 2400, 800, 30
LOSS_EVERY, SCORE_EVERY, IMAGES = 50, 100, 8
MATRIX_RATE, OTHER_RATE, DROPOUT = 4e-3, 3e-3, 0.1
SCENES, HELD_SCENES = 2048, 192
KINDS = [
    (shape, colour)
    for shape in ("circle", "square", "triangle")
    for colour in ("red", "yellow", "green", "blue")
    if trainable(Wish((shape,), (colour,)))
]
SEEDS = (0, 1, 2)
RECOVERY_STEPS, RECOVERY_BATCH, SCORED = 100, 32, spread(20)


@dataclass(frozen=True)
class OneObjectScenes:
    """Scenes of one object as latents (S, C, h, w) with their contents, and the text encoder's words for them."""

    latents: Tensor
    shapes: Sequence[str]
    colours: Sequence[str]
    text: dict[str, tuple[Tensor, Tensor]]  # prompt: states (L, D), mask (L)
    parts: Parts  # the shipped checkpoint's; only the transformer differs here

    def batch(self, picks: Sequence[int], rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        prompts = []
        for k in picks:
            named = single(self.shapes[k], self.colours[k] if rng.random() < 0.75 else None).prompt
            prompts.append("" if rng.random() < DROPOUT else named)
        states, masks = zip(*(self.text[prompt] for prompt in prompts), strict=True)
        return self.latents[list(picks)], torch.stack(states), torch.stack(masks)


def load_world(work: Path) -> OneObjectScenes:
    pipeline = SanaPipeline.from_pretrained(EMBEDDED["shapes"])
    parts = Parts(pipeline.tokenizer, pipeline.text_encoder.eval(), pipeline.transformer, pipeline.vae.eval())
    rng = np.random.default_rng(5)
    kinds = [KINDS[k] for k in rng.integers(len(KINDS), size=SCENES + HELD_SCENES)]
    wishes = [Wish((shape,), (colour,)) for shape, colour in kinds]
    cache = work / "latents.pt"
    if not cache.exists():
        batches = []
        with torch.no_grad():
            for start in range(0, len(wishes), 64):
                images = np.stack([render(place(rng, wish)) for wish in wishes[start : start + 64]])
                pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
                batches.append(parts.vae.encode(pixels).latent * parts.vae.config.scaling_factor)
        torch.save(torch.cat(batches), cache)
    prompts = ["", *dict.fromkeys(single(shape, c).prompt for shape, colour in KINDS for c in (None, colour))]
    with torch.no_grad():
        states, mask = parts.encode(prompts)
    text = {prompt: (states[i], mask[i]) for i, prompt in enumerate(prompts)}
    shapes, colours = zip(*kinds, strict=True)
    return OneObjectScenes(torch.load(cache, weights_only=True), shapes, colours, text, parts)


def held_out_loss(world: OneObjectScenes, model: SanaTransformer2DModel) -> float:
    """Flow-matching loss on scenes, noise and captions that are always the same."""
    rng = np.random.default_rng(9)
    x, text, mask = world.batch(range(SCENES, SCENES + HELD_SCENES), rng)
    sigma = noise_levels(len(x), rng)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        return float(flow_loss(model, x, noise, sigma, text, mask)[0])


def share_right(world: OneObjectScenes, model: SanaTransformer2DModel) -> float:
    """Share of images that the exact evaluator accepts: every kind of object, seeds that are always the same."""
    specs = [single(*kind) for kind in KINDS for _ in range(IMAGES)]
    seeds = [seed for _ in KINDS for seed in range(IMAGES)]
    images = sample(replace(world.parts, transformer=model), [spec.prompt for spec in specs], seeds)
    return float(np.mean([evaluate(image, spec).correct for image, spec in zip(images, specs, strict=True)]))


def train(
    world: OneObjectScenes, model: SanaTransformer2DModel, steps: int, seed: int, falling: bool = False
) -> Iterator[tuple[int, SanaTransformer2DModel]]:
    """Steps of Muon and AdamW as in `models/training`; yields the running mean of the weights every `LOSS_EVERY` steps.

    The rate stays as it is after warm-up, or falls to zero.
    """
    inner = [*model.transformer_blocks.parameters(), *model.caption_projection.parameters()]
    matrices = [p for p in inner if p.ndim >= 2 and p[0].numel() > 9 and p.shape[0] > 6]
    optimizer = build_optimizer("muon", matrices, model.parameters(), MATRIX_RATE, OTHER_RATE, weight_decay=0.01)
    mean = copy.deepcopy(model)
    yield 0, mean
    for step in range(steps):
        rng = np.random.default_rng((seed, step))
        x, text, mask = world.batch(rng.integers(SCENES, size=BATCH).tolist(), rng)
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(int(rng.integers(2**62))))
        loss, _ = flow_loss(model, x, noise, noise_levels(BATCH, rng), text, mask)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(1 - step / steps if falling else min(1.0, (step + 1) / WARMUP))
        keep = min(0.999, (1 + step) / (20 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(mean.parameters()), list(model.parameters()), 1 - keep)
        if (step + 1) % LOSS_EVERY == 0:
            yield step + 1, mean


def run(
    world: OneObjectScenes,
    work: Path,
    arm: str,
    seed: int,
    start: SanaTransformer2DModel,
    steps: int,
    *,
    falling: bool = False,
    facts: Mapping[str, object] | None = None,
) -> Path:
    """Train one arm of one seed, unless it is done; returns the folder of its checkpoint."""
    folder = work / f"{arm}-{seed}"
    if not folder.exists():
        began = time.process_time()
        lines = []
        for step, model in train(world, start, steps, seed, falling):
            line = {"arm": arm, "seed": seed, "step": step, **(facts or {}), "loss": held_out_loss(world, model)}
            if step % SCORE_EVERY == 0:
                line["score"] = share_right(world, model)
            lines.append(line | {"cpu_seconds": round(time.process_time() - began, 1)})
            sys.stderr.write(f"{json.dumps(lines[-1])}\n")
        log(*lines)
        save_pipeline(replace(world.parts, transformer=model), folder)
    return folder


def log(*lines: dict[str, object]) -> None:
    with LOG.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def built(world: OneObjectScenes, layers: int, seed: int) -> SanaTransformer2DModel:
    torch.manual_seed(seed)
    return build_parts(world.parts.vae, WIDTH, layers).transformer


def grown(work: Path, source: Path, method: Method, dropped: int, seed: int) -> SanaTransformer2DModel:
    out = work / f"{source.name}-{method}-{dropped}-start"
    if not out.exists():
        grow(Checkpoint.resolve(str(source)), out, DEEP, method, dropped, seed)
    return SanaTransformer2DModel.from_pretrained(out / "transformer")


def measure_growth(world: OneObjectScenes, work: Path, seed: int, methods: Sequence[tuple[str, Method, int]]) -> None:
    source = run(world, work, "source", seed, built(world, SHALLOW, seed), SOURCE_STEPS)
    run(world, work, "scratch", seed, built(world, DEEP, seed + 100), STEPS)
    for arm, method, dropped in methods:
        run(world, work, arm, seed, grown(work, source, method, dropped, seed), STEPS)


def measure_longer_source(world: OneObjectScenes, work: Path, seed: int) -> None:
    """Growth from a source that was trained three times as long."""
    source = run(world, work, "longer source", seed, built(world, SHALLOW, seed), LONGER_STEPS)
    run(world, work, "partial, longer source", seed, grown(work, source, "partial", 2, seed), STEPS)


def measure_grown_then_pruned(world: OneObjectScenes, work: Path, arm: str, seed: int) -> None:
    """A grown and trained model with fewer blocks, before and after recovery, like the paper's table."""
    source = Checkpoint.resolve(str(work / f"{arm}-{seed}"))
    prompts = [single(*kind).prompt for kind in KINDS]
    importance = block_importance(Generator(source), prompts)
    log({"arm": "grown, importance", "seed": seed, "importance": importance})
    draw = np.random.default_rng(seed)
    for layers in (6, 5, 4, 3):
        for choice, kept in choices_of(importance, layers, draw).items():
            name = f"pruned, {choice}, {layers}"
            folder = work / f"{name}-{seed}-start"
            if not folder.exists():
                prune(source, folder, kept)
            start = SanaTransformer2DModel.from_pretrained(folder / "transformer")
            facts = {"choice": choice, "layers": layers, "kept": kept}
            run(world, work, name, seed, start, RECOVERY_STEPS, falling=True, facts=facts)


def choices_of(importance: Sequence[float], layers: int, draw: np.random.Generator) -> dict[str, list[int]]:
    """Blocks that stay: the most important ones, the first ones, and any."""
    return {
        "importance": kept_blocks(importance, layers),
        "last": list(range(layers)),
        "random": sorted(draw.choice(len(importance), layers, replace=False).tolist()),
    }


def measure_pruning(work: Path, depths: Sequence[int], choices: Sequence[str]) -> None:
    """The shipped checkpoint with fewer blocks, before and after recovery."""
    source = Checkpoint.resolve("shapes")
    order = work / "importance.json"
    if not order.exists():
        values = block_importance(Generator(source), calibration_prompts())
        log({"arm": "importance", "importance": values})
        log({"arm": "whole", "layers": len(values), "score": evaluator_score(source.path)})
        order.write_text(json.dumps(values))
    importance = json.loads(order.read_text())
    draw = np.random.default_rng(0)
    for layers in depths:
        kept = choices_of(importance, layers, draw)
        for choice in choices:
            name = f"{choice}-{layers}"
            line = {"arm": "prune", "choice": choice, "layers": layers, "kept": kept[choice]}
            start, out = work / f"{name}-start", work / f"{name}-recovered"
            if not start.exists():
                prune(source, start, kept[choice])
                log(line | {"step": 0, "score": evaluator_score(start)})
            if not out.exists():
                recover_shipped(work, start, out)
                log(line | {"step": RECOVERY_STEPS, "score": evaluator_score(out)})


def measure_shipped(work: Path) -> None:
    """Whether a little training makes the shipped checkpoint better: as it is, and grown to twice its depth."""
    source = Checkpoint.resolve("shapes")
    for name, layers in (("shipped, grown", 12), ("shipped", 6)):
        start, out = work / f"{name}-start", work / f"{name}-trained"
        if out.exists():
            continue
        if not start.exists():
            if layers == 6:
                shutil.copytree(source.path, start)
            else:
                grow(source, start, layers, dropped=0)
        recover_shipped(work, start, out)
        score = evaluator_score(out)
        log({"arm": "further", "name": name, "layers": layers, "step": RECOVERY_STEPS, "score": score})


def recover_shipped(work: Path, start: Path, out: Path) -> None:
    recover(start, out, work / f"{start.name}-run", RECOVERY_STEPS, lambda _: None, batch=RECOVERY_BATCH)


def evaluator_score(folder: Path) -> float:
    """Mean of the six categories on half of the benchmark, at the call defaults."""
    result = score(load_parts(folder), SCORED)["mean"]
    sys.stderr.write(f"{folder.name}: {result:.3f}\n")
    return result


def main() -> None:
    torch.set_num_threads(1)
    work = Path(sys.argv[1])
    work.mkdir(parents=True, exist_ok=True)
    world = load_world(work)
    methods: list[tuple[str, Method, int]] = [
        ("partial, 2 dropped", "partial", 2),
        ("partial, 0 dropped", "partial", 0),
        ("cyclic", "cyclic", 0),
        ("block", "block", 0),
    ]
    for seed in SEEDS:
        measure_growth(world, work, seed, methods[:1])
    measure_grown_then_pruned(world, work, methods[0][0], SEEDS[0])
    measure_longer_source(world, work, SEEDS[0])
    measure_growth(world, work, SEEDS[0], methods[1:])
    measure_pruning(work, (5, 4, 3), ("importance",))
    measure_pruning(work, (4,), ("last", "random"))
    measure_pruning(work, (5, 3), ("last", "random"))
    measure_shipped(work)


if __name__ == "__main__":
    main()
