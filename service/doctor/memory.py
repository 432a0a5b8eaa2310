"""Whether a generator and a judge fit a device: what stays in memory, what takes turns, how many candidates at once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bestofn.models import residency
from bestofn.models.linear_dit import LinearDiTConfig
from bestofn.service.doctor.report import Finding
from bestofn.service.engine.sizes import sizes_for
from bestofn.service.load import share_memory

GIB = 2**30
# Values alive at the peak of a forward, traced once over the published shapes: a token's in the transformer, in units
# of the Mix-FFN's width before its gate (2 F), and a pixel's in the decoder, in units of its last stage's channels.
ROW_VALUES = 7.0
DECODE_VALUES = 6.5
_DEVICES = (8, 12, 16, 24, 32, 40, 48, 80, 96, 141, 192)  # GiB that GPUs come with


@dataclass(frozen=True, slots=True)
class Needs:
    """What a generator and a judge take on a device, in bytes.

    Attributes:
        parts: weights of text_encoder, transformer and decoder.
        judge: its weights, and those of a second judge.
        row: activations of one row of the transformer's batch at the default size.
        context: keys and values of one row's prompt.
        picture: activations of decoding one picture of the default size.
        rows: of a candidate: two with guidance.
        tflops: of one row's forward.
    """

    parts: Mapping[str, int]
    judge: int
    row: int
    context: int
    picture: int
    rows: int
    tflops: float

    @property
    def weights(self) -> int:
        """Of everything."""
        return sum(self.parts.values()) + self.judge

    def at_work(self, slots: int) -> int:
        """Activations while so many candidates are denoised, or a picture is decoded, whichever is more."""
        return max(slots * self.rows * (self.row + self.context), self.picture)

    @property
    def least(self) -> int:
        """What must fit whatever takes turns: the hungriest part at its smallest work."""
        return max(
            self.parts["text_encoder"],
            self.parts["transformer"] + self.rows * (self.row + self.context),
            self.parts["decoder"] + self.picture,
            self.judge,
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """How a worker shares out a device's memory.

    Attributes:
        stay: parts that stay in memory, the judge among them.
        turns: parts that are read from disk whenever they are needed.
        slots: candidates denoised together.
        used: bytes of what stays, and of the work of all slots.
        fits: the hungriest part fits alone.
    """

    stay: tuple[str, ...]
    turns: tuple[str, ...]
    slots: int
    used: int
    fits: bool


def needs_of(
    parts: Mapping[str, int], judge: int, config: LinearDiTConfig, cells_to_pixels: int, channels: int, text: int,
    itemsize: int, guided: bool, tflops: float,
) -> Needs:  # fmt: skip
    """From a checkpoint's shape to its needs.

    Args:
        parts, judge: bytes of weights.
        config: the transformer's shape, with the default size.
        cells_to_pixels: pixels a latent cell and side.
        channels: of the decoder's last stage.
        text: tokens of every prompt's context.
        itemsize: bytes of a value on the device.
        guided: a candidate takes a second row.
        tflops: of one row's forward.
    """
    tokens = (config.sample_size // config.patch_size) ** 2
    pixels = (config.sample_size * cells_to_pixels) ** 2
    return Needs(
        parts=parts,
        judge=judge,
        row=int(ROW_VALUES * 2 * config.ffn_width * tokens * itemsize),
        context=2 * config.num_layers * text * config.cross_width * itemsize,
        picture=int(DECODE_VALUES * channels * pixels * itemsize),
        rows=2 if guided else 1,
        tflops=tflops,
    )


def plan(needs: Needs, memory: int, device: str, slots: int | None = None) -> Plan:
    """What a worker will do on a device of type `device` ("cpu", "cuda") with so many bytes."""
    shared, budget = share_memory(dict(needs.parts), needs.judge, memory)
    stay: list[str] = []
    for part in reversed(residency.RELEASE_ORDER):
        if not residency.to_release(part, needs.parts, stay, budget):
            stay.append(part)
    held = sum(needs.parts[part] for part in stay) + (needs.judge if shared else 0)
    every = (*needs.parts, "judge")
    kept = tuple(part for part in every if part in stay or (part == "judge" and shared))
    sizes = sizes_for(device, slots, tflops=needs.tflops, row_bytes=needs.context, memory=memory)
    return Plan(
        kept,
        tuple(part for part in every if part not in kept),
        sizes.slots,
        held + needs.at_work(sizes.slots),
        needs.least <= memory,
    )


def findings(needs: Needs, memory: int, free: int, device: str, slots: int | None = None) -> Iterator[Finding]:
    """The plan in words, with what to change where something does not fit."""
    planned = plan(needs, memory, device, slots)
    names = {part: part.replace("_", " ") for part in (*needs.parts, "judge")}
    sizes = ", ".join(f"{names[part]} {_size(size)}" for part, size in (*needs.parts.items(), ("judge", needs.judge)))
    yield Finding("ok", "weights", f"{sizes}: {_size(needs.weights)} in all, for {_size(memory)} on this {device}")
    if not planned.fits:
        found = f"the hungriest part takes {_size(needs.least)} with its work, the device has {_size(memory)}"
        yield Finding("fail", "memory", found, _larger(needs, device))
        return
    work = (
        f"work takes about {_size(needs.at_work(planned.slots))} more, with {planned.slots} "
        f"{'candidate' if planned.slots == 1 else 'candidates'} at once ({_size(needs.picture)} to decode a picture)"
    )
    if planned.turns:
        found = f"not all stay in memory, which is slower: {' and '.join(names[part] for part in planned.turns)} "
        found += f"{'is' if len(planned.turns) == 1 else 'are'} read again when needed; {work}"
        yield Finding("warn", "memory", found, _larger(needs, device))
    elif planned.used > memory:
        most = max(1, (memory - needs.weights) // (needs.rows * (needs.row + needs.context)))
        found = f"all parts stay in memory; {work}: {_size(planned.used)} in all"
        yield Finding("warn", "memory", found, f"set BESTOFN_SLOTS={most}, or draw smaller pictures")
    else:
        yield Finding("ok", "memory", f"all parts stay in memory; {work}: {_size(planned.used)} in all")
    if free < needs.least:
        found = f"only {_size(free)} are free now, {_size(needs.least)} are the least"
        fix = "stop what holds the rest (a worker that already runs holds its share)"
        yield Finding("warn", "free", found, fix)


def _larger(needs: Needs, device: str) -> str:
    """Which device would hold everything, and what else helps."""
    halved = 1 if device == "cuda" else 2  # a CPU computes in float32, a GPU in half of it
    whole = (needs.weights + needs.at_work(1)) / residency.WEIGHTS_SHARE / halved / GIB
    fitting = next((size for size in _DEVICES if size >= whole), None)
    fix = f"a GPU of {fitting} GiB keeps everything" if fitting else f"a GPU of {whole:.0f} GiB keeps everything"
    if needs.parts["transformer"] > needs.parts["text_encoder"]:
        fix += "; the 1.6B checkpoint takes less"
    return f"{fix}; smaller pictures (--size) take less work, a smaller judge less weight"


def _size(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.0f} MiB"
