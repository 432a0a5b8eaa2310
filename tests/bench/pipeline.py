"""Candidates a second and peak memory on the shapes checkpoint: the engine against what a user would pick instead,
diffusers' SanaPipeline with one call a candidate (i) or one call with num_images_per_prompt=N (ii). Each is a process
of its own, which alone computes while it is timed."""

import statistics
from typing import Any

from drawer import Drawn, drawers
from figures import Measured, Table, at_least

ROUNDS = {1: 7, 32: 5, 256: 1}
WAYS = {"one-by-one": "diffusers (i)", "together": "diffusers (ii)", "engine": "bestofn", "fast": "bestofn, fast"}
OURS = {"engine": 1.4, "fast": 2.0}  # wanted of (ii)
MIB = 2**20


def measure(short: bool) -> Measured:
    """Rounds in alternating order."""
    runs: dict[tuple[int, str], list[Drawn]] = {}
    rounds = {1: 2, 4: 1} if short else ROUNDS
    with drawers("fast") as (first,):
        compiled = first.loaded  # from here on the cache has the graphs
    with drawers(*WAYS) as made:
        ways = dict(zip(WAYS, made, strict=True))
        loaded = {way: drawer.loaded for way, drawer in ways.items()}
        for N, count in rounds.items():
            for drawer in ways.values() if N < 256 else ():
                drawer.draw(min(N, 8), 10_000)  # warm
            for number in range(count):
                for way in list(ways) if number % 2 == 0 else reversed(ways):
                    runs.setdefault((N, way), []).append(ways[way].draw(N, 100 * number))
    rows, seconds = [], {}
    for (N, way), drawn in runs.items():
        alone = statistics.median(run.seconds - run.stages.get("judge", 0.0) for run in drawn)
        seconds[N, way] = alone
        rows.append((N, WAYS[way] + (", judge left out" if way in OURS else ""), alone, drawn))
        if way in OURS:
            rows.append((N, WAYS[way], statistics.median(run.seconds for run in drawn), drawn))
    table = Table(
        ("N", "way", "s", "candidates/s", "x of (i)", "x of (ii)", "peak MiB", "rounds"),
        [
            (N, name, s, N / s, seconds[N, "one-by-one"] / s, seconds[N, "together"] / s, _peak(drawn), len(drawn))
            for N, name, s, drawn in sorted(rows, key=lambda row: (row[0], row[1]))
        ],
    )
    wanted = 32 if 32 in rounds else max(rounds)

    def pairs(N: int, way: str) -> float:
        """Median ratio of diffusers' seconds to ours in the same round, without the judge."""
        theirs, ours = runs[N, "together"], runs[N, way]
        return statistics.median(
            a.seconds / (b.seconds - b.stages.get("judge", 0.0)) for a, b in zip(theirs, ours, strict=True)
        )

    return Measured(
        [table],
        [
            at_least(f"N = {wanted}, of (i)", seconds[wanted, "one-by-one"] / seconds[wanted, "engine"], 4.0, "x"),
            *(at_least(f"N = {wanted}, {WAYS[way]}, of (ii)", pairs(wanted, way), x, "x") for way, x in OURS.items()),
            at_least("N = 1, bestofn, fast, of (ii)", pairs(1, "fast"), 1.0, "x"),
        ],
        [
            "Ratios of (ii) are medians over pairs of neighbours.",
            _starts(compiled, loaded),
            "The ratios that are wanted leave the judge out, which diffusers has not; the engine's memory includes it.",
        ],
    )


def _starts(first: dict[str, Any], loaded: dict[str, dict[str, Any]]) -> str:
    """Seconds until an engine serves, and until its blocks are compiled."""
    plain, fast = loaded["engine"], loaded["fast"]
    if "blocks" not in fast:
        return "This processor multiplies in float32: fast mode compiles nothing."
    return (
        f"Strict serves after {plain['load']:.1f} s, fast after {fast['load']:.1f} s with eager blocks. Blocks "
        f"were {fast['blocks']} after {first['compile']:.0f} s, with a filled cache after {fast['compile']:.0f} s."
    )


def _peak(drawn: list[Drawn]) -> float:
    return max(run.peak_bytes for run in drawn) / MIB
