"""make bench-gpu: what one GPU does, section by section, with random weights at true shapes; no network.

    python -P tests/bench/gpu.py                         all of it, within nine minutes
    python -P tests/bench/gpu.py ceilings forward        some sections
    python -P tests/bench/gpu.py --device cpu --tiny     every section at toy sizes, to see that it runs

Each section is a fresh interpreter, so that one that breaks or hangs costs the others nothing. A fork would not do:
libraries ask for the number of devices at import, and a forked child cannot use CUDA after that. What a section has
measured is written to SECTION.json as it goes; one that would not fit into the time that is left is not begun.
"""

# ruff: noqa: T201

import argparse
import contextlib
import importlib
import inspect
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))

from figures import ROOT, Measured, machine, save, shown, write_page

# Seconds that a section is expected to take on an H200; computed, not measured.
SECTIONS = {"ceilings": 20, "kernels": 50, "strict": 70, "forward": 90, "engine": 180, "diffusers": 110, "cards": 90}
BUDGET = 530.0  # seconds of all
LEAST_SHARE = 0.6  # of what a section is expected to take must be left to begin it
HEAD = (
    '# Benchmarks on a GPU\n\nWritten by `make bench-gpu` (some sections: `make bench-gpu SECTIONS="engine strict"`). '
    "Weights are random, shapes are true: times and bytes mean something, images and verdicts do not."
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; all if left out")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy sizes; the CPU knows no others")
    parser.add_argument(
        "--budget", type=float, default=BUDGET, help=f"seconds of all sections, {BUDGET:.0f} if left out"
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", metavar="FOLDER", type=Path, help=argparse.SUPPRESS)  # of a section's checkpoints
    parser.add_argument("--on", help=argparse.SUPPRESS)  # the machine, as a section's page names it
    flags = parser.parse_args()
    if flags.child is not None:
        return _child(flags)
    unknown = set(flags.sections) - SECTIONS.keys()
    if unknown:
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    if flags.device == "cpu" and not flags.tiny:
        parser.error("--device cpu takes --tiny: true shapes take a CPU hours")
    out = flags.out or ROOT / ("out/bench-gpu" if flags.tiny else "evaluation/results/bench/gpu")
    deadline = time.monotonic() + flags.budget
    same = ["--device", flags.device, *(["--tiny"] if flags.tiny else [])]
    with tempfile.TemporaryDirectory() as folder:
        named, device = _interpreter([*same, "--child", folder], flags.budget, capture=True)
        if not named:  # torch may take a minute to import
            print(
                "bench-gpu needs a CUDA device and found none; --device cpu --tiny runs its code without",
                file=sys.stderr,
            )
            return 2
        on = f"{device}; {machine()}"
        print(on, flush=True)
        broken = 0
        for name in flags.sections or SECTIONS:
            left, takes = deadline - time.monotonic(), 1 if flags.tiny else SECTIONS[name]
            if left < LEAST_SHARE * takes:
                print(f"{name}: skipped, {left:.0f} s are left and it takes about {takes}", flush=True)
                continue
            begun = time.monotonic()
            ended, _ = _interpreter([*same, "--out", str(out), "--on", on, "--child", folder, name], left)
            seconds = time.monotonic() - begun
            broken += not ended
            print(f"{name}: {seconds:.0f} s{'' if ended else ', broken off'}\n", flush=True)
            write_page(out, SECTIONS, HEAD)
    print(f"{broken} broken off")
    return 1 if broken else 0


def _child(flags: argparse.Namespace) -> int:
    """The work of one interpreter: a section, or without one the device's name on stdout; status 1 for none."""
    if flags.sections:
        (name,) = flags.sections
        return 0 if _section(name, _place(flags.device, flags.tiny, flags.child), flags.out, flags.on) else 1
    import torch

    if flags.device == "cpu":
        print("no GPU, toy sizes")
    elif torch.cuda.is_available():
        have = torch.cuda.get_device_properties(0)
        print(f"{have.name}, {have.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}")
    else:
        return 1
    return 0


def _place(device: str, tiny: bool, folder: Path) -> Any:
    import diffusers
    import torch
    import transformers
    from gpu_place import Place

    diffusers.utils.logging.set_verbosity_error()
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    return Place(torch.device(device), tiny, folder)


def _section(name: str, place: Any, out: Path, on: str) -> bool:
    """Runs a section; what it has measured is kept, whatever becomes of it."""
    module = importlib.import_module(f"gpu_{name}")
    caption, begun, measured = inspect.cleandoc(module.__doc__ or ""), time.monotonic(), Measured([])
    try:
        for measured in module.measure(place):
            save(out, name, caption, measured, time.monotonic() - begun, on)
    except Exception:
        said = f"Broken off: {traceback.format_exc(limit=-1).strip().splitlines()[-1]}"
        save(
            out,
            name,
            caption,
            Measured(measured.tables, measured.figures, [*measured.notes, said]),
            time.monotonic() - begun,
            on,
        )
        traceback.print_exc()
        return False
    finally:
        print(f"{shown(measured)}\n", flush=True)
    return True


def _interpreter(arguments: list[str], seconds: float, capture: bool = False) -> tuple[bool, str]:
    """Runs this program in a fresh interpreter; whether it ended well in time, and its stdout if captured."""
    command = [sys.executable, "-P", __file__, *arguments]
    output = subprocess.PIPE if capture else None
    process = subprocess.Popen(command, stdout=output, text=True, start_new_session=True)
    try:
        printed, _ = process.communicate(timeout=seconds)
        return process.returncode == 0, (printed or "").strip()
    except subprocess.TimeoutExpired:
        return False, ""
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it has started too
        process.wait()


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    sys.exit(main())
