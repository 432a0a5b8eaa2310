"""What the rules and top_k make of the pool, without drawing anything: `python evaluation/results/scaling/rules.py`
prints the table of docs/guide/tournament.md. Means over the six categories, as in docs/research/scaling.md.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

from bestofn.evaluation.tasks import benchmark
from bestofn.judge.bracket import knockout, sub_brackets, top_k
from bestofn.judge.verdict import Rule, Verdict, rank
from bestofn.models.generator import Generator

POOL = Path(__file__).with_name("pool.jsonl")


def main() -> None:
    """Prints the table."""
    lines = [json.loads(line) for line in POOL.read_text().splitlines()[1:]]
    steps = Generator.load("shapes").defaults.num_inference_steps
    rows = [line for line in lines if line["steps"] == steps and "after" not in line and line["start"] == 0]
    tags = [task.tag for task in benchmark()]
    out = ["| N | margin | official | same winner | one of the best 4 is right | sub-brackets find the best 4 |"]
    out.append("|---|---|---|---|---|---|")
    for N in (4, 8, 16, 32):
        seen: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
        for row in rows:
            for start in range(0, len(row["correct"]), N):
                for name, value in facts(row, slice(start, start + N)).items():
                    seen[name][tags[row["prompt"]]].append(value)
        means = [sum(sum(v) / len(v) for v in by_tag.values()) / len(by_tag) for by_tag in seen.values()]
        out.append(f"| {N} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")
    sys.stdout.write("\n".join(out) + "\n")


def facts(row: dict, block: slice) -> dict[str, bool]:
    """Of one prompt's candidates: whether each choice is right."""
    logits = zip(row["yes"][block], row["no"][block], strict=True)
    verdicts = [Verdict("yes" if yes > no else "no", yes, no) for yes, no in logits]
    correct, entrants = [word == "1" for word in row["correct"][block]], range(len(verdicts))
    margin, official = rank(verdicts, Rule.MARGIN), rank(verdicts, Rule.OFFICIAL)
    assert knockout(entrants, margin).winner == margin[0]
    best = top_k(entrants, margin, 4)
    return {
        "margin": correct[margin[0]],
        "official": correct[official[0]],
        "same": margin[0] == official[0],
        "any": any(correct[i] for i in best),
        "found": {bracket.winner for bracket in sub_brackets(entrants, margin, 4)} == set(best),
    }


if __name__ == "__main__":
    main()
