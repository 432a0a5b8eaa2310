"""Trains and samples shallower models of shapes: `python evaluation/results/compute/measure.py WORK` starts or resumes.

The shipped checkpoint is pruned to 5, 4 and 3 of its 6 layers, and each is trained a little further. Each draws 32
candidates for half of the benchmark's prompts, with the seeds of layers-6.jsonl. The shipped
checkpoint also draws drafts with fewer layers. WORK keeps weights; the pools stay in this folder, and draw.py makes
the tables of them. About an hour of one core.
"""

import json
import sys
from pathlib import Path

import torch

from bestofn.evaluation.drawing import fill
from bestofn.evaluation.pool import Pool, SampleRequest, SamplingConfig, Source
from bestofn.evaluation.tasks import benchmark
from bestofn.judge.judge import Judge
from bestofn.models.checkpoint import Checkpoint
from bestofn.models.depth.pruning import block_importance, calibration_prompts, kept_blocks, prune
from bestofn.models.generator import Generator
from bestofn.models.sampling import generate
from bestofn.models.shapes.prompts import benchmark_prompts
from bestofn.service.engine.judge_loader import find_judge
from bestofn.training.generator.pipeline import spread
from bestofn.training.generator.recovery import recover

HERE = Path(__file__).parent
# Of recovery: layers, the first rate as a share of a fresh run's. Where more is left, more can be spoilt: in 45 steps
# of 32 scenes 5 layers learned more at 0.25 (loss 0.535) than at 1 (0.539), 3 more at 1 (1.12) than at 0.25 (1.17).
RATES = {5: 0.25, 4: 0.5, 3: 1.0}
STEPS, BATCH = 400, 64
FULL, SAMPLES, PER_CATEGORY = 12, 32, 20  # denoising steps, candidates of a prompt, prompts of a category
HEAT, DRAFTED = 16, 48  # of drafts: candidates of a prompt, number of prompts
WAYS = ((5, 12), (4, 12), (5, 4))  # of drafts: layers, denoising steps


def numbers(per_category: int) -> list[int]:
    """Prompts of the benchmark, one of each category in turn, so that what was cut off is of all alike."""
    tasks = benchmark_prompts()
    found = [tasks.index(prompt) for prompt in spread(per_category)]
    return [number for start in range(per_category) for number in found[start::per_category]]


def importances(work: Path) -> list[float]:
    """Of the shipped checkpoint's layers."""
    file = work / "importance.json"
    if not file.exists():
        file.write_text(json.dumps(block_importance(Generator.load("shapes"), calibration_prompts())))
    values: list[float] = json.loads(file.read_text())
    return values


def recovered(work: Path, layers: int) -> Path:
    """A checkpoint with the most important layers, trained further; scenes are drawn once for all."""
    start, out, run = (work / f"{part}-{layers}" for part in ("start", "recovered", "run"))
    if not start.exists():
        prune(Checkpoint.resolve("shapes"), start, kept_blocks(importances(work), layers))
    if not out.exists():
        progress, scenes = lambda at: say(layers, at), work / "scenes.pt"
        recover(start, out, run, STEPS, progress, batch=BATCH, rate=RATES[layers], latents=scenes)
    return out


def sampled(folder: Path, layers: int) -> None:
    """A pool of a checkpoint's candidates, as `bestofn eval` draws them."""
    checkpoint, judge = Checkpoint.resolve(str(folder)), find_judge("shapes")
    source = Source(str(checkpoint.path), checkpoint.revision, judge.name.full, judge.revision.revision, benchmark())
    request = SampleRequest(SamplingConfig(FULL), SAMPLES, numbers(PER_CATEGORY))
    pool = Pool(HERE / f"layers-{layers}.jsonl", source)
    fill(pool, [request], 1, lambda done, total: say(layers, f"{done} of {total} chunks"))


def drafted(work: Path, layers: int, steps: int) -> None:
    """Verdicts on drafts of the shipped checkpoint with its most important layers alone."""
    out = HERE / f"drafts-{layers}-{steps}.json"
    if out.exists():
        return
    layers = kept_blocks(importances(work), layers)
    generator, judge, tasks = Generator.load("shapes"), Judge.load(device=torch.device("cpu")), benchmark()
    margins = {}
    for number in numbers(PER_CATEGORY)[:DRAFTED]:
        task = tasks[number]
        seeds = range(task.seed, task.seed + HEAT)
        images = generate(generator, task.prompt, seeds, num_inference_steps=steps, layers=layers).numpy()
        verdicts = judge.judge(list(images), [task.prompt] * HEAT)
        margins[number] = [round(verdict.yes_logit - verdict.no_logit, 3) for verdict in verdicts]
    out.write_text(json.dumps(margins) + "\n")
    say(layers, f"drafts of {steps} steps")


def say(layers: int, what: object) -> None:
    sys.stderr.write(f"{layers} layers: {what}\n")


def main() -> None:
    torch.set_num_threads(1)
    work = Path(sys.argv[1])
    work.mkdir(parents=True, exist_ok=True)
    for layers in (5, 3):
        sampled(recovered(work, layers), layers)
    for layers, steps in WAYS:
        drafted(work, layers, steps)
    sampled(recovered(work, 4), 4)


if __name__ == "__main__":
    main()
