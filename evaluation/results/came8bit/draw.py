"""Tables and plot of docs/research/came8bit.md from runs.jsonl: `python -P evaluation/results/came8bit/draw.py`."""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot

FOLDER = Path(__file__).parent
COLOURS = {"AdamW": "#888888", "CAME": "#3a6ea5", "CAME-8bit": "#d49a1e"}


def main() -> None:
    lines = [json.loads(line) for line in (FOLDER / "runs.jsonl").read_text().splitlines()]
    memory_table([line for line in lines if line["arm"] == "memory"])
    error_table([line for line in lines if line["arm"] == "error"])
    size_table([line for line in lines if line["arm"] == "size"])
    curves([line for line in lines if line["arm"] == "curve"])


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def memory_table(lines: list[dict[str, Any]]) -> None:
    say("| weights | parameters | optimizer | state, GB | bytes a parameter | of AdamW |\n|---|---|---|---|---|---|")
    adamw = {line["model"]: line["bytes"] for line in lines if line["optimizer"] == "AdamW"}
    for line in lines:
        each, share = line["bytes"] / line["parameters"], line["bytes"] / adamw[line["model"]]
        start = f"| {line['model']} | {line['parameters']:,} | {line['optimizer']} |"
        say(f"{start} {line['bytes'] / 1e9:,.3f} | {each:.2f} | {share:.3f} |")


def error_table(lines: list[dict[str, Any]]) -> None:
    say("\n| scheme | error after steps " + " | ".join(map(str, steps(lines))) + " | wrong or no sign |")
    say("|" + "---|" * (len(steps(lines)) + 2))
    for scheme in lines[0]["errors"]:
        figures = [
            np.mean([line["errors"][scheme]["error"] for line in lines if line["step"] == s]) for s in steps(lines)
        ]
        sign = np.mean([line["errors"][scheme]["sign"] for line in lines])
        say(f"| {scheme} | {' | '.join(f'{f:.2%}' for f in figures)} | {sign:.2%} |")


def size_table(lines: list[dict[str, Any]]) -> None:
    say("\n| scheme | " + " | ".join(f"{line['numbers']}, error | wrong or no sign" for line in lines) + " |")
    say("|" + "---|" * (1 + 2 * len(lines)))
    for scheme in lines[0]["errors"]:
        cells = [f"{line['errors'][scheme]['error']:.2%} | {line['errors'][scheme]['sign']:.2%}" for line in lines]
        say(f"| {scheme} | {' | '.join(cells)} |")


def steps(lines: list[dict[str, Any]]) -> list[int]:
    return sorted({line["step"] for line in lines})


def curves(lines: list[dict[str, Any]]) -> None:
    runs: dict[str, dict[int, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        runs[line["optimizer"]][line["seed"]].append((line["step"], line["loss"]))
    last = {kind: {seed: run[-1][1] for seed, run in seeds.items()} for kind, seeds in runs.items()}
    seeds = sorted({seed for losses in last.values() for seed in losses})
    say(f"\n| optimizer | {' | '.join(f'seed {seed}' for seed in seeds)} | mean | over CAME |")
    say("|" + "---|" * (len(seeds) + 3))
    for kind, losses in last.items():
        over = np.mean([losses[seed] / last["CAME"][seed] - 1 for seed in losses.keys() & last["CAME"].keys()])
        cells = " | ".join(f"{losses[seed]:.4f}" if seed in losses else "" for seed in seeds)
        say(f"| {kind} | {cells} | {np.mean(list(losses.values())):.4f} | {over:+.2%} |")
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for kind, several in runs.items():
        for seed, run in several.items():
            axes.plot(*zip(*run, strict=True), color=COLOURS[kind], lw=1.2, label=kind if seed == 0 else None)
    axes.set(xlabel="updates", ylabel="held-out flow-matching loss", title="Width 64, four layers, drawn scenes")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(FOLDER / "curves.png", dpi=110)


if __name__ == "__main__":
    main()
