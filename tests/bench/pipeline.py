"""Candidates per second on the shapes checkpoint: our engine against what a user would pick instead, in one run.

    python tests/bench/pipeline.py [N] [ROUNDS]

Compared are plain diffusers, one call for each candidate (i) and one call with num_images_per_prompt=N (ii), and the
engine's whole job, once with the judge's share and once without it. The order alternates; medians are reported, as
ratios of the same run. Writes docs/bench/pipeline.json and prints a table.
"""

import json
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import SanaPipeline

from bestofn.models.checkpoint import Checkpoint
from bestofn.service.limits import cores as available_cores
from bestofn.service.load import load_engine
from bestofn.service.local import local_spec, run_local
from bestofn.service.schemas import GenerateRequest
from bestofn.service.settings import load_settings

PROMPT = "a photo of a red star left of a blue circle"
ROOT = Path(__file__).resolve().parents[2]


def main(N: int, rounds: int) -> None:
    settings = load_settings(model="shapes", judge="shapes")
    engine = load_engine(settings, "cpu")
    # Diffusers' operators share all cores; of the engine's, as many as it runs batches at once.
    cores, own = available_cores(), 1 if engine.sizes.parallel > 1 else available_cores()
    checkpoint = Checkpoint.resolve("shapes")
    pipeline = SanaPipeline.from_pretrained(checkpoint.path, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    card = engine.model_card
    call = {
        "num_inference_steps": card.num_inference_steps,
        "guidance_scale": card.guidance_scale,
        "width": card.width,
        "height": card.height,
        "use_resolution_binning": False,
        "complex_human_instruction": None,
        "max_sequence_length": json.loads((checkpoint.path / "bestofn.json").read_text())["max_sequence_length"],
    }

    def seeds(first: int, count: int) -> list[torch.Generator]:
        return [torch.Generator("cpu").manual_seed(first + i) for i in range(count)]

    def one_by_one(first: int) -> float:
        torch.set_num_threads(cores)
        started = time.perf_counter()
        for i in range(N):
            pipeline(PROMPT, generator=seeds(first + i, 1), **call)
        return time.perf_counter() - started

    def together(first: int) -> float:
        torch.set_num_threads(cores)
        started = time.perf_counter()
        pipeline(PROMPT, num_images_per_prompt=N, generator=seeds(first, N), **call)
        return time.perf_counter() - started

    judged: list[float] = []

    def ours(first: int) -> float:
        torch.set_num_threads(own)
        request = GenerateRequest(prompt=PROMPT, num_samples=N, seed=first)
        started = time.perf_counter()
        result = run_local(local_spec(request, engine, settings), engine).result
        taken = time.perf_counter() - started
        judged.append(taken - result.usage.seconds["judge"])
        return taken

    ways: dict[str, Callable[[int], float]] = {
        "diffusers, one call a candidate (i)": one_by_one,
        "diffusers, num_images_per_prompt=N (ii)": together,
        "bestofn, judge included": ours,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for warm_up in ways.values():
        warm_up(10_000)
    judged.clear()
    for number in range(rounds):
        for name in list(ways) if number % 2 == 0 else list(reversed(ways)):
            times[name].append(ways[name](100 * number))
    seconds = {name: statistics.median(values) for name, values in times.items()}
    seconds["bestofn, without its judge's share"] = statistics.median(judged)
    slow, batched = list(seconds.values())[:2]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    capability = torch.backends.cpu.get_cpu_capability()
    machine = {
        "machine": f"{platform.machine()}, {cores} cores, {capability}",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
    }
    report = {"N": N, "rounds": rounds, "seconds": seconds, **machine}
    out = ROOT / "docs" / "bench" / "pipeline.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"N = {N}, {rounds} rounds, {machine}")  # noqa: T201
    for name, value in seconds.items():
        speed = f"{N / value:6.2f} candidates/s   {slow / value:5.2f}x of (i)   {batched / value:5.2f}x of (ii)"
        print(f"{name:42} {value:7.2f} s   {speed}")  # noqa: T201


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main(*(int(text) for text in [*sys.argv[1:], "32", "3"][:2]))
