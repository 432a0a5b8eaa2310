"""How well a shallow draft foretells the full solution: `python docs/growth/drafts.py WORK` draws and prints a table.

For 24 prompts of the benchmark, 16 candidates each: the judge orders full solutions (docs/scaling/pool.jsonl), beside
its order of drafts by the same weights with fewer blocks, or in fewer steps. WORK keeps what was drawn; WORK holds
importance.json of docs/growth/measure.py.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bestofn.judge.judge import Judge
from bestofn.models.flops import TERA, forward_flops
from bestofn.models.generator import Generator
from bestofn.models.pruning import kept_blocks
from bestofn.models.sampling import generate
from bestofn.models.shapes.prompts import benchmark_prompts
from bestofn.models.training.score import spread

POOL = Path(__file__).parents[1] / "scaling" / "pool.jsonl"
HEAT, FULL = 16, 12
WAYS = ((6, 4), (5, 12), (5, 4))  # layers, steps


def main() -> None:
    torch.set_num_threads(1)
    work = Path(sys.argv[1])
    generator, judge = Generator.load("shapes"), Judge.load(device=torch.device("cpu"))
    importance = json.loads((work / "importance.json").read_text())
    tasks = benchmark_prompts()
    chosen = [tasks.index(prompt) for prompt in spread(4)]
    final = np.array([pool(FULL)[number] for number in chosen])  # (J, 16)
    print_row("draft", "keeps the best in 1", "in 2", "in 4", "rank correlation", "GFLOP of denoising")
    print_row(*["---"] * 6)
    for layers, steps in WAYS:
        if layers == len(importance):
            draft = np.array([pool(steps)[number] for number in chosen])
        else:
            blocks = kept_blocks(importance, layers)
            cache = work / f"drafts-{layers}-{steps}.json"
            if not cache.exists():
                rows = []
                for number in chosen:
                    prompt, seed = tasks[number].spec.prompt, tasks[number].seed
                    seeds = range(seed, seed + HEAT)
                    pictures = generate(generator, prompt, seeds, num_inference_steps=steps, blocks=blocks).numpy()
                    verdicts = judge.judge(list(pictures), [prompt] * HEAT)
                    rows.append([verdict.yes_logit - verdict.no_logit for verdict in verdicts])
                cache.write_text(json.dumps(rows))
            draft = np.array(json.loads(cache.read_text()))
        places = ranks(-draft)[np.arange(len(final)), final.argmax(1)]
        kept = [f"{(places < k).mean():.2f}" for k in (1, 2, 4)]
        shape = replace(generator.config, num_layers=layers)
        cost = 2 * steps * forward_flops(shape, 16, 16, generator.defaults.max_sequence_length) / TERA * 1000
        print_row(f"{layers} layers, {steps} steps", *kept, f"{correlation(final, draft):.2f}", f"{cost:.2f}")


def pool(steps: int) -> dict[int, list[float]]:
    """The judge's log-odds of the first heat of every prompt."""
    rows = [json.loads(line) for line in POOL.read_text().splitlines()[1:]]
    rows = [row for row in rows if row["steps"] == steps and row["start"] == 0 and "after" not in row]
    return {row["prompt"]: [y - n for y, n in zip(row["yes"], row["no"], strict=True)][:HEAT] for row in rows}


def ranks(values: np.ndarray) -> np.ndarray:
    return values.argsort(1, kind="stable").argsort(1, kind="stable")


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, within prompts, mean over them."""
    return float(np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(ranks(a), ranks(b), strict=True)]))


def print_row(*cells: str) -> None:
    sys.stdout.write(f"| {' | '.join(cells)} |\n")


if __name__ == "__main__":
    main()
