"""What drafts bring on shapes, without drawing anything: `python docs/scaling/drafts.py` prints the table of
docs/scaling.md from the pools (`bestofn eval --samples 32 [--steps S] --out docs/scaling[/steps-S]` fills them).

Candidates compete in heats of 16. A score is the share of winners that the evaluator accepts, a mean over the six
categories, every prompt's 32 samples used as 32 / N blocks. Work is counted as the server counts it, per prompt."""

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bestofn.judge.judge import Judge
from bestofn.judge.verdict import Verdict
from bestofn.models.flops import TERA
from bestofn.models.generator import Generator
from bestofn.service.jobs import Draft, JobSpec, Revision
from bestofn.service.result import finalists

FOLDER = Path(__file__).parent
FULL, HEAT = 12, 16
PIN = Revision(name="shapes", revision="")


@dataclass(frozen=True)
class Prompt:
    """One prompt's samples, in seed order."""

    tag: str
    correct: list[bool]
    margin: list[float]


@dataclass(frozen=True)
class Cost:
    """TFLOP: a step of one candidate with guidance, and decoding and judging a picture."""

    step: float
    verdict: float

    def of(self, steps: int, verdicts: int) -> float:
        return steps * self.step + verdicts * self.verdict


def main() -> None:
    """Prints the table."""
    full = read(FOLDER / "pool.jsonl")
    drafts = {int(path.name.removeprefix("steps-")): path / "pool.jsonl" for path in FOLDER.glob("steps-*")}
    cost = measure()
    out = ["| strategy | candidates | score | TFLOP a prompt | keeps the plain winner |", "|---|---|---|---|---|"]

    def row(name: str, N: int, tflops: float, choose: Callable[[int, range], int]) -> None:
        seen: dict[str, list[bool]] = defaultdict(list)
        kept: list[bool] = []
        for number, prompt in full.items():
            for start in range(0, len(prompt.correct) - N + 1, N):
                block = range(start, start + N)
                winner = choose(number, block)
                seen[prompt.tag].append(prompt.correct[winner])
                kept.append(winner == max(block, key=prompt.margin.__getitem__))
        score = sum(sum(values) / len(values) for values in seen.values()) / len(seen)
        out.append(f"| {name} | {N} | {score:.3f} | {tflops:.3f} | {sum(kept) / len(kept):.2f} |")

    for N in (1, 2, 4, 8, 16, 32):
        row("plain", N, cost.of(N * FULL, N), lambda number, block: max(block, key=full[number].margin.__getitem__))
    for steps, path in sorted(drafts.items()):
        coarse = read(path)
        for keep in (0.0625, 0.125, 0.25):
            for N in (16, 32):
                spec = job(N, steps, keep)

                def choose(number: int, block: range, spec: JobSpec = spec, coarse: dict[int, Prompt] = coarse) -> int:
                    chosen = solved(spec, coarse[number].margin, block)
                    return max(chosen, key=full[number].margin.__getitem__)

                name = f"draft of {steps} steps, keep {spec.finalists(HEAT)} of 16"
                row(name, N, cost.of(spec.total_steps, N + spec.num_finalists), choose)
    sys.stdout.write("\n".join(out) + "\n")


def solved(spec: JobSpec, margin: Sequence[float], block: range) -> list[int]:
    """Samples of a block that are solved in full, as the server chooses them, heat by heat."""
    chosen: list[int] = []
    for start in range(block.start, block.stop, HEAT):
        heat = {i: Verdict("yes", margin[i], 0.0) for i in range(start, start + HEAT)}
        chosen += finalists(spec, heat)
    return chosen


def read(path: Path) -> dict[int, Prompt]:
    """The pool, by number of the prompt."""
    rows = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    return {
        row["number"]: Prompt(
            row["tag"], row["correct"], [yes - no for yes, no in zip(row["yes_logit"], row["no_logit"], strict=True)]
        )
        for row in rows
    }


def measure() -> Cost:
    """The work of the shapes checkpoint and judge."""
    generator, judge = Generator.load("shapes"), Judge.load(device=torch.device("cpu"))
    side = generator.defaults.width
    flops = generator.flops(side, side)
    return Cost(2 * flops.forward / TERA, (flops.decode + judge.flops(side, side)) / TERA)


def job(N: int, steps: int, keep: float) -> JobSpec:
    return JobSpec(
        id="a", prompt="p", num_samples=N, seed=0, width=64, height=64, num_inference_steps=FULL, guidance_scale=4.0,
        heat_size=HEAT, draft=Draft(num_inference_steps=steps, keep=keep), model=PIN, judge=PIN,
    )  # fmt: skip


if __name__ == "__main__":
    main()
