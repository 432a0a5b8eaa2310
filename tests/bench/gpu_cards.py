"""Smaller cards by a limit on this process' memory, and what a change of size costs: candidates a second, peak memory,
and the warnings that users would see."""

from collections.abc import Iterator
from functools import partial

import torch
from figures import Measured, Table
from gpu_place import GIB, Place, engine, job, run

from bestofn.service.doctor.fit_table import CARDS

N = 32
SETTINGS = (("1.6B", "16 GB"), ("1.6B", "24 GB"), ("4.8B", "24 GB"))


def measure(place: Place) -> Iterator[Measured]:
    """Jobs of one engine in order, of four steps: one prompt twice, another size, and back. The driver is left out."""
    rows: list[tuple[str | float, ...]] = []
    measured = Measured([Table(("model", "card", "job", "s", "candidates/s", "peak GiB", "rows", "warnings"), rows)])
    for size, card in SETTINGS:
        if place.cuda:
            total = torch.cuda.get_device_properties(place.device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, CARDS[card] * GIB / total), place.device)
        made = engine(place, size)
        own, count = made.model_info.width, place.pick(N, 3)
        for what, side in (
            ("first", own),
            ("again", own),
            ("other size", place.pick(own // 2, 2 * own)),
            ("back", own),
        ):
            spec = job(made, count, width=side, height=side, num_inference_steps=place.pick(4, 2))
            with place.peak() as peak:
                seconds, drawn = place.timed(partial(run, made, spec))
            warned = "; ".join(dict.fromkeys(line for outcome in drawn["job"] for line in outcome.warnings)) or "none"
            most = max(slots.most_rows for slots in made._groups.values())
            rows.append((size, card, what, seconds, count / seconds, peak(), most, warned))
            yield measured
        del made
        place.free()
    if place.cuda:
        torch.cuda.set_per_process_memory_fraction(1.0, place.device)
