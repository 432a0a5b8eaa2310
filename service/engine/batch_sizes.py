"""Batch sizes: slots of a device and the batch size of each stage. Pure arithmetic."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sizes:
    """An engine's batch sizes.

    A stage's batch is as large as `work` allows, up to the stage's limit. Small images are batched. A single large
    image fills the device, so no padding is computed for it.

    Attributes:
        slots: candidates that are denoised together.
        strict: every batch of a stage has one size, so that a row's bits do not depend on its neighbours.
        rows: the most rows of one transformer forward; a candidate with guidance has two.
        decode: the most images decoded together.
        judge: the most images judged together.
        work: TFLOP of one batch beyond which a larger one brings nothing; None: no such bound.
        parallel: batches at once, each in one thread.
    """

    slots: int
    strict: bool
    rows: int
    decode: int
    judge: int
    work: float | None = None
    parallel: int = 1

    def __post_init__(self) -> None:
        least = min(self.slots, self.rows, self.decode, self.judge)
        if least < 1:
            raise ValueError(f"slots, rows, decode and judge must be at least 1, got {least}")

    def batch(self, most: int, tflops: float) -> int:
        """The batch size of a stage whose limit is `most` and whose items cost `tflops` each."""
        if self.work is None or tflops <= 0:
            return most
        return max(1, min(most, int(self.work / tflops)))

    def images(self, width: int, height: int, tflops: float) -> int:
        """The images decoded together at that size: as many pixels as `decode` images of 1,024 px have."""
        return min(self.batch(self.decode, tflops), max(1, self.decode * 1024**2 // (width * height)))


# Measured on an x86 core with the shapes checkpoint (CPU seconds for 16 candidates in forwards of 2, 4, 8, 16, 32 rows:
# 3.7, 2.7, 2.3, 2.2, 2.7): beyond 8 rows a forward brings next to nothing, and its padding costs a job of a single
# candidate 0.3 seconds.
CPU_ROWS = 8
CPU_FAST_ROWS = 16  # in bfloat16, compiled: 2.4, 2.1, 1.9 ms a row in forwards of 8, 16, 32
CPU_WORK = 0.05  # TFLOP: about a second of one core
CPU_TICK = 2.0  # TFLOP of all slots together, about half a minute of two cores: how long a cancelled job may linger
CPU_SLOTS = 16
GPU_SLOTS = 32
GPU_ROWS = 16  # rows of a strict forward: enough tokens to fill a GPU, little padding for one candidate
BUCKET = 8  # rows by which forwards differ


def sizes_for(
    device: str,
    slots: int | None = None,
    reproducible: str | None = None,
    *,
    tflops: float = 0.0,
    cores: int = 1,
) -> Sizes:
    """The sizes for a device of type `device` ("cpu", "cuda").

    Args:
        slots: candidates denoised together; chosen here if None.
        reproducible: "strict" or "fast"; on a CPU strict is the default, on a GPU fast.
        tflops: TFLOP of one row's forward at the model's own size.
        cores: number of CPU cores. With a small model each computes batches of its own, with a large one they
            share each.
    """
    cpu = device != "cuda"
    if slots is None:
        slots = CPU_SLOTS if cpu else GPU_SLOTS
        if cpu and tflops > 0:
            slots = max(1, min(slots, int(CPU_TICK / (2 * tflops))))
    strict = reproducible == "strict" or (reproducible is None and cpu)
    if cpu:
        rows = min(CPU_ROWS if strict else CPU_FAST_ROWS, 2 * slots)
        parallel = cores if rows * tflops <= CPU_WORK else 1
        return Sizes(slots, strict, rows, decode=8, judge=8, work=CPU_WORK, parallel=parallel)
    return Sizes(slots, strict, GPU_ROWS if strict else 2 * slots, decode=8, judge=16)


def bucket(rows: int, most: int) -> int:
    """The rows of a forward that serves `rows`, at most `most`: a power of two up to 8, then a multiple of 8.

    A few shapes then serve every load, and at most seven rows are computed in vain.
    """
    if not 1 <= rows <= most:
        raise ValueError(f"a batch has 1 to {most} rows, got {rows}")
    return min(most, 1 << (rows - 1).bit_length() if rows <= BUCKET else -(-rows // BUCKET) * BUCKET)


def forwards(used: int, lane: int, strict: bool, parallel: int = 1) -> list[range]:
    """The forwards of the first `used` rows.

    Args:
        lane: the most rows of one, and with `strict` the rows of each.
        parallel: forwards at once, which otherwise share the rows alike, two or more each.
    """
    length = lane if strict else bucket(min(lane, max(2, -(-used // parallel))), lane)
    starts = range(0, used, length)
    return [range(at, at + (lane if strict else bucket(min(length, used - at), lane))) for at in starts]
