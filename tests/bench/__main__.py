"""make bench: what is wanted of the speed, measured section by section.

    python tests/bench                    all of it, within ten minutes on a quiet machine
    python tests/bench queue scaling      some sections
    python tests/bench --short            less of everything, into out/bench

Each section writes evaluation/results/bench/SECTION.json as it ends, and the page evaluation/results/bench/README.md
anew.
"""

import argparse
import importlib
import inspect
import os
import sys
import time
import warnings
from pathlib import Path

from figures import ROOT, Company, machine, save, shown, write_page

SECTIONS = {
    "pipeline": "pipeline",
    "stages": "stages",
    "judge": "judging",
    "queue": "queueing",
    "scaling": "scaling",
    "growth": "growth",
    "share": "share",
    "host": "host",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; all if left out")
    parser.add_argument("--short", action="store_true", help="less of everything, to see that it runs")
    parser.add_argument("--out", type=Path)
    flags = parser.parse_args()
    out = flags.out or ROOT / ("out/bench" if flags.short else "evaluation/results/bench")
    unknown = set(flags.sections) - SECTIONS.keys()
    if unknown:
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    os.environ.pop("OMP_NUM_THREADS", None)  # every way chooses its threads itself
    missed = 0
    for name in flags.sections or SECTIONS:
        module = importlib.import_module(SECTIONS[name])
        company, begun = Company(), time.monotonic()
        measured = module.measure(flags.short)
        seconds = time.monotonic() - begun
        on = f"{machine()}; other programs took {100 * company.share():.0f} % of the cores meanwhile"
        save(out, name, inspect.cleandoc(module.__doc__ or ""), measured, seconds, on)
        write_page(out, SECTIONS)
        print(f"{name}: {seconds:.0f} s on {on}\n\n{shown(measured)}\n", flush=True)  # noqa: T201
        missed += sum(not figure.met for figure in measured.figures)
    print(f"{missed} missed")  # noqa: T201
    return 0


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    sys.exit(main())
