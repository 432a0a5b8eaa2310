"""Each fused operator at the transformer's shapes: right first, then bytes a second against a copy of this run, and
against its plain-torch reference. An operator that is not right is not timed."""

from collections.abc import Iterator
from functools import partial

import operators
import torch
from figures import Measured, Table, at_least, at_most
from gpu_ceilings import copy_rate
from gpu_place import Place

from bestofn.kernels.dispatch import launcher

ROWS = (2, 64)


def measure(place: Place) -> Iterator[Measured]:
    """On a CPU each operator is its own reference."""
    operators.DEVICE, operators.DTYPE = str(place.device), place.dtype
    shape = place.pick(operators.SANA, operators.TOY)
    rows: list[tuple[str | float, ...]] = []
    figures = []
    header = ("operator", "rows", "error", "us", "TB/s", "% of a copy", "x of the reference")
    ceiling = copy_rate(place)
    with torch.inference_mode():
        for B in ROWS:
            for operator, args in operators.calls(shape, B).items():
                name = operator.__name__
                kernel = launcher(operator) if place.cuda else operator
                error = operators.gate_error(operator, args, kernel)
                figures.append(at_most(f"error of {name}, {B} rows", error, operators.TOLERANCE))
                if not error < operators.TOLERANCE:
                    rows.append((name, B, error, "red", "", "", ""))
                    continue
                ours, theirs = (place.seconds(partial(f, *args), 20) for f in (kernel, operator.__wrapped__))
                rate = B * operators.work(shape)[name].moved / ours / 1e12
                rows.append((name, B, error, 1e6 * ours, rate, 100 * rate / ceiling, theirs / ours))
                yield Measured([Table(header, rows)], figures, [f"The copy: {ceiling:.3g} TB/s read and written."])
    if not place.tiny:
        large = [float(row[5]) for row in rows if row[1] == max(ROWS) and row[3] != "red"]
        figures.append(at_least(f"slowest operator of a copy, {max(ROWS)} rows", min(large, default=0.0), 60, "%"))
    yield Measured([Table(header, rows)], figures, [f"The copy: {ceiling:.3g} TB/s read and written."])
