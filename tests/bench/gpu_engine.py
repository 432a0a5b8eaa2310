"""The whole engine: text, 20 steps with guidance, decoding, one judge tile an image, encoding of the winner."""

import statistics
import warnings
from collections.abc import Iterator
from functools import partial

import torch
from figures import Figure, Measured, Table, at_least
from gpu_place import STAGES, Place, engine, job, run, stages

from bestofn.service.core.jobs import HeatOutcome
from bestofn.service.engine.engine import Engine

RUNS = {("1.6B", 32): 2, ("1.6B", 256): 1, ("4.8B", 32): 1}
WANTED = {"1.6B": 3.7, "4.8B": 1.2}  # candidates a second on an H200


def measure(place: Place) -> Iterator[Measured]:
    """Shares are of the wall time; stages overlap on a GPU, so that they may add up to more than all of it."""
    rows: list[tuple[str | float, ...]] = []
    figures: list[Figure] = []
    notes: list[str] = []
    header = ("model", "N", "s", "candidates/s", "TFLOP/s", "peak GiB", *(f"{stage} %" for stage in STAGES))
    measured = Measured([Table(header, rows)], figures, notes)
    made, loaded = None, ""
    for (size, N), count in RUNS.items():
        if size != loaded:
            made = None
            place.free()
            made, loaded = engine(place, size), size
            run(made, job(made, place.pick(32, 2), num_inference_steps=2, prompt="warm"))
            notes.append(f"{size}: {_waits(place, made)}")
        assert made is not None
        runs: list[tuple[float, list[HeatOutcome]]] = []
        with place.peak() as peak:
            for number in range(count):
                spec = job(made, place.pick(N, min(N, 4)), seed=1000 * number, prompt=f"{number} stars")
                seconds, drawn = place.timed(partial(run, made, spec))
                runs.append((seconds, drawn["job"]))
        seconds = statistics.median(seconds for seconds, _ in runs)
        shares = [100 * statistics.median(stages(drawn)[stage] for _, drawn in runs) / seconds for stage in STAGES]
        tflops = sum(outcome.usage.tflops for outcome in runs[0][1])
        rows.append((size, N, seconds, spec.num_samples / seconds, tflops / seconds, peak(), *shares))
        if place.cuda and not place.tiny and "H200" in torch.cuda.get_device_name():
            figures.append(at_least(f"{size}, N = {N}, H200", N / seconds, WANTED[size], "candidates/s"))
        yield measured


def _waits(place: Place, made: Engine) -> str:
    """Where the host waited for the device inside of ticks, other than for a result that it needs."""
    if not place.cuda:
        run(made, job(made, 2, num_inference_steps=2))
        return "no device to wait for"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        run(made, job(made, 8, num_inference_steps=2, prompt="warm"))
        torch.cuda.set_sync_debug_mode("default")
    found = sorted({f"{w.filename.rpartition('/')[2]}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)})
    return f"the host waits for the device at {', '.join(found) or 'no place but where it reads a result'}"
