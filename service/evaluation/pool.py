"""The pool of an evaluation: benchmark prompts x seeds -> verdict and evaluator's word, a line a prompt, resumable."""

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bestofn.judge.judge import Judge
from bestofn.models.generator import Generator
from bestofn.models.sampling import generate
from bestofn.models.shapes.evaluator import evaluate
from bestofn.models.shapes.prompts import BenchmarkPrompt, benchmark_prompts

BATCH = 16


@dataclass(frozen=True)
class Row:
    """All samples of one prompt; logits and correctness in seed order."""

    prompt: str
    tag: str
    held_out: bool
    seed: int
    correct: list[bool]
    yes_logit: list[float]
    no_logit: list[float]


@dataclass(frozen=True)
class Source:
    """What draws and judges: checkpoint folders on this machine, with their revisions, and samples a prompt.

    `steps` are denoising steps; None: the checkpoint's.
    """

    model: str
    model_revision: str
    judge: str
    judge_revision: str
    samples: int
    steps: int | None = None

    @property
    def identity(self) -> dict[str, str | int]:
        """What verdicts and pictures depend on, wherever the folders lie."""
        steps = {} if self.steps is None else {"steps": self.steps}
        return {"model": self.model_revision, "judge": self.judge_revision, "samples": self.samples, **steps}


def fill(
    path: Path,
    source: Source,
    prompts: int,
    processes: int,
    progress: Callable[[int, int], None],
    pictures: Path | None = None,
) -> dict[int, Row]:
    """Draws, judges and evaluates what the file lacks; rows by number of the benchmark prompt.

    Args:
        path: JSON lines; made when absent. The first line names the source.
        source: what draws and judges.
        prompts: how many of the benchmark's prompts, evenly spaced.
        processes: each with one thread.
        progress: called with rows done and wanted.
        pictures: folder that keeps the pictures, so that another judge can be measured without drawing them again.

    Raises:
        ValueError: the file was filled from another source.
    """
    benchmark = benchmark_prompts()
    wanted = sorted({round(i * (len(benchmark) - 1) / max(1, prompts - 1)) for i in range(prompts)})
    rows = dict(_read(path, source))
    missing = [number for number in wanted if number not in rows]
    progress(len(wanted) - len(missing), len(wanted))
    if missing:
        path.parent.mkdir(parents=True, exist_ok=True)
        # spawn: a forked child would inherit the threads' state of torch
        with path.open("a", encoding="utf-8") as file, ProcessPoolExecutor(processes, get_context("spawn")) as workers:
            if not rows and path.stat().st_size == 0:
                file.write(json.dumps(source.identity) + "\n")
            futures = {workers.submit(_row, source, benchmark[number], pictures): number for number in missing}
            for future in as_completed(futures):
                number = futures[future]
                rows[number] = future.result()
                file.write(json.dumps({"number": number, **asdict(rows[number])}) + "\n")
                file.flush()
                progress(sum(number in rows for number in wanted), len(wanted))
    return {number: rows[number] for number in wanted}


def _read(path: Path, source: Source) -> Iterator[tuple[int, Row]]:
    if not path.is_file() or not path.stat().st_size:
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    if json.loads(lines[0]) != source.identity:
        raise ValueError(f"{path} was filled from {lines[0]}, not from {source.identity}: choose another --out")
    for line in lines[1:]:
        try:
            fields = json.loads(line)
        except ValueError:  # the last line of a run that was cut off
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
            return
        yield fields.pop("number"), Row(**fields)


@cache
def _parts(model: str, judge: str) -> tuple[Generator, Judge]:
    torch.set_num_threads(1)
    return Generator.load(model), Judge.load(judge)


def _row(source: Source, prompt: BenchmarkPrompt, folder: Path | None) -> Row:
    generator, judge = _parts(source.model, source.judge)
    pictures = _pictures(generator, source, prompt, folder)
    text, verdicts = prompt.spec.prompt, []
    for start in range(0, len(pictures), BATCH):
        share = list(pictures[start : start + BATCH])
        verdicts += judge.judge(share, [text] * len(share))
    return Row(
        text,
        prompt.spec.tag,
        prompt.held_out,
        prompt.seed,
        [evaluate(picture, prompt.spec).correct for picture in pictures],
        [verdict.yes_logit for verdict in verdicts],
        [verdict.no_logit for verdict in verdicts],
    )


def _pictures(
    generator: Generator, source: Source, prompt: BenchmarkPrompt, folder: Path | None
) -> NDArray[np.uint8]:  # (S, H, W, 3)
    kept = folder and folder / (
        "-".join(map(str, (source.model_revision, prompt.seed, source.samples, source.steps))) + ".npz"
    )
    if kept is not None and kept.is_file():
        with np.load(kept) as file:
            return np.asarray(file["pictures"])
    seeds = range(prompt.seed, prompt.seed + source.samples)
    shares = (seeds[start : start + BATCH] for start in range(0, len(seeds), BATCH))
    drawn = np.concatenate(
        [generate(generator, prompt.spec.prompt, share, num_inference_steps=source.steps).numpy() for share in shares]
    )
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(".part.npz")
        np.savez_compressed(part, pictures=drawn)
        os.replace(part, kept)
    return drawn
