"""Where the engine's time goes: share of each stage in a job's wall time, without server and queue."""

import statistics

from drawer import drawers
from figures import Measured, Table

STAGES = ("text", "denoise", "decode", "judge", "encode")


def measure(short: bool) -> Measured:
    """A job of one candidate and one of many."""
    rows = []
    with drawers("engine") as (engine,):
        engine.draw(2, 10_000)  # warm
        for N in (1, 4) if short else (1, 32):
            runs = [engine.draw(N, 100 * number) for number in range(2 if short else 3)]
            shares = [
                statistics.median(100 * run.stages.get(stage, 0.0) / run.seconds for run in runs) for stage in STAGES
            ]
            rest = statistics.median(100 * (1 - sum(run.stages.values()) / run.seconds) for run in runs)
            rows.append((N, statistics.median(run.seconds for run in runs), *shares, rest))
    return Measured([Table(("N", "s", *(f"{stage} %" for stage in STAGES), "rest %"), rows)])
