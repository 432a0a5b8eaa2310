"""The efforts on candidates that they were not chosen on: `python evaluation/results/scaling/confirm.py` prints the
table.

fresh.jsonl has candidates 128 to 191 of every prompt, of 12 and of 4 steps; the efforts were chosen on the first
128.
"""

import json
import runpy
import sys
from pathlib import Path

from bestofn.evaluation.cost import Price
from bestofn.evaluation.pool import Pool, Source
from bestofn.evaluation.replay import Replayed, replay
from bestofn.evaluation.stats import Prompts
from bestofn.evaluation.strategies import Strategy
from bestofn.evaluation.tasks import benchmark
from bestofn.judge import calibration
from bestofn.judge.judge import EMBEDDED

FRESH, FIRST = Path(__file__).with_name("fresh.jsonl"), 128
SCALING = Path(__file__).with_name("scaling.json")
PLAIN = [Strategy(N) for N in (4, 8, 32, 64)]


def main() -> None:
    """Prints the table."""
    figures, pool = json.loads(SCALING.read_text()), fresh()
    steps, price = figures["steps"], Price(**figures["prices"]["tflops"])
    prompts = Prompts([task.tag for task in pool.source.tasks])
    fitted = calibration.read(EMBEDDED / calibration.FILE)

    def told(strategy: Strategy) -> Replayed | None:
        return replay(strategy, pool, steps, range(len(pool.source.tasks)), fitted)

    rows = {f"best of {plain.num_samples}": plain for plain in PLAIN}
    efforts = runpy.run_path(str(Path(__file__).with_name("frontier.py")))["efforts"](figures)
    rows |= {f"`{name}`": Strategy.parse(line) for name, line in efforts.items()}
    par = told(Strategy(32))
    assert par is not None
    print_row("", "score", "TFLOP", "of best of 32", "loss to best of 32 (bound)")
    print_row(*["---"] * 5)
    for name, strategy in rows.items():
        if (one := told(strategy)) is None:
            continue  # more candidates than there are
        score, spent = one.correct.mean(1), prompts.mean(price.of(one, steps).mean(1))
        loss = par.correct.mean(1) - score
        share = spent / prompts.mean(price.of(par, steps).mean(1))
        bound = f"{prompts.mean(loss):.3f} ({prompts.upper_bound(loss):.3f})"
        print_row(name, f"{prompts.mean(score):.3f}", f"{spent:.3f}", f"{100 * share:.0f} %", bound)


def fresh() -> Pool:
    """Its candidates counted from 0."""
    identity = json.loads(FRESH.read_text().splitlines()[0])
    pool = Pool(FRESH, Source("", identity["model"], "", identity["judge"], tuple(benchmark())))
    for by_prompt in pool.chunks.values():
        for number, chunks in by_prompt.items():
            by_prompt[number] = {start - FIRST: chunk for start, chunk in chunks.items()}
    return pool


def print_row(*cells: str) -> None:
    """One of a Markdown table."""
    sys.stdout.write(f"| {' | '.join(cells)} |\n")


if __name__ == "__main__":
    main()
