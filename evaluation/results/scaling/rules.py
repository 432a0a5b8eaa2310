"""What the rules and top_k make of the pool, without drawing anything: `python evaluation/results/scaling/rules.py`
prints the table of docs/guide/tournament.md. Means over the six categories, as in docs/research/scaling.md.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bestofn.evaluation.pool import CHUNK, Pool, SamplingConfig
from bestofn.evaluation.stats import Prompts
from bestofn.judge.bracket import knockout, sub_brackets, top_k
from bestofn.judge.verdict import Rule, Verdict, rank
from bestofn.models.generator import Generator

POOL = Path(__file__).with_name("pool.jsonl")


def main() -> None:
    """Prints the table."""
    pool = Pool.of_benchmark(POOL)
    samples = pool.samples(SamplingConfig(Generator.load("shapes").defaults.num_inference_steps), CHUNK)
    prompts = Prompts(pool.tags(samples.numbers))
    out = ["| N | margin | official | same winner | one of the best 4 is right | sub-brackets find the best 4 |"]
    out.append("|---|---|---|---|---|---|")
    for N in (4, 8, 16, 32):
        blocks = [slice(start, start + N) for start in range(0, CHUNK, N)]
        rows = zip(samples.verdicts, samples.correct > 0, strict=True)
        shares = np.array([np.mean([facts(row[b], right[b]) for b in blocks], 0) for row, right in rows])  # (P, 5)
        out.append(f"| {N} | " + " | ".join(f"{prompts.mean(share):.3f}" for share in shares.T) + " |")
    sys.stdout.write("\n".join(out) + "\n")


def facts(verdicts: Sequence[Verdict], correct: Sequence[bool]) -> list[bool]:
    """The columns of the table on one prompt's candidates."""
    entrants = range(len(verdicts))
    margin, official = rank(verdicts, Rule.MARGIN), rank(verdicts, Rule.OFFICIAL)
    assert knockout(entrants, margin).winner == margin[0]
    best = top_k(entrants, margin, 4)
    return [
        correct[margin[0]],
        correct[official[0]],
        margin[0] == official[0],
        any(correct[i] for i in best),
        {bracket.winner for bracket in sub_brackets(entrants, margin, 4)} == set(best),
    ]


if __name__ == "__main__":
    main()
