"""Breaks things on purpose and counts what comes of it: every promise of docs/operate/reliability.md, on real
processes.

    python tests/chaos/run.py                            all of it, within 40 minutes
    python tests/chaos/run.py kill-workers --rounds 100  one section
    python tests/chaos/run.py --short                    a few rounds of each, into out/chaos

Prints a table, writes evaluation/results/reliability/chaos.json (or into --out) and the table in its README.md; ends
with 1 if a promise is broken.
"""

import argparse
import asyncio
import sys
import time
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))  # which -P leaves out

import bad_input
import greedy
import jobs
import outages
import overload
import trouble
import workers
from figures import ROOT, Figure, table, write


class Section(NamedTuple):
    """Something that breaks, and how often it does so: in full, and for a short look."""

    run: Callable[[int], Coroutine[Any, Any, list[Figure]]]
    rounds: int
    short: int


SECTIONS = {
    "kill-workers": Section(workers.kill_workers, 100, 2),
    "stop-worker": Section(workers.stop_worker, 10, 1),
    "hang": Section(workers.hang, 3, 1),
    "drain": Section(workers.drain, 20, 2),
    "poison": Section(trouble.poison, 10, 1),
    "memory": Section(trouble.memory, 3, 1),
    "judge-garbage": Section(trouble.rambling, 10, 2),
    "kill-queue": Section(outages.kill_queue, 8, 1),
    "disk-full": Section(outages.disk_full, 8, 1),
    "kill-api": Section(outages.kill_api, 4, 1),
    "flood": Section(overload.flood, 60, 30),
    "fairness": Section(overload.fairness, 5, 1),
    "greedy": Section(greedy.greedy, 20, 5),
    "idempotency": Section(overload.idempotency, 10, 1),
    "cancel-storm": Section(jobs.cancel_storm, 1000, 100),
    "hang-up": Section(jobs.hang_up, 20, 4),
    "deadline": Section(jobs.deadline, 10, 1),
    "bad-input": Section(bad_input.bad_input, 10_000, 500),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; all if left out")
    parser.add_argument("--rounds", type=int, help="of each section")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--out", type=Path)
    flags = parser.parse_args()
    unknown = set(flags.sections) - SECTIONS.keys()
    if unknown:
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    figures: list[Figure] = []
    seconds: dict[str, float] = {}
    for name in flags.sections or SECTIONS:
        section = SECTIONS[name]
        rounds = flags.rounds or (section.short if flags.short else section.rounds)
        begun = time.monotonic()
        try:
            own = asyncio.run(section.run(rounds))
        except Exception as error:
            traceback.print_exc()
            own = [Figure(name, "runs to its end", "yes", f"{type(error).__name__}: {error}"[:100], False)]
        seconds[name] = time.monotonic() - begun
        figures += own
        print(f"{table(own)}\n{name}: {seconds[name]:.0f} s\n", flush=True)  # noqa: T201
    write(figures, seconds, flags.out or ROOT / ("out/chaos" if flags.short else "evaluation/results/reliability"))
    broken = [figure for figure in figures if figure.kept is False]
    print(f"{len(broken)} broken of {sum(f.kept is not None for f in figures)} promises")  # noqa: T201
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
