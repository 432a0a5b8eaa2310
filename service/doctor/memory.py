"""Whether a generator and its judges fit a device: what stays in memory, what takes turns, how many slots there are."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from bestofn.judge.names import ADDRESSES
from bestofn.kernels.fp8 import FP8_DTYPE
from bestofn.models import residency
from bestofn.models.checkpoint import Checkpoint, pipeline_parts
from bestofn.models.defaults import FOLDERS, part_dtypes
from bestofn.models.flops import TERA, forward_flops
from bestofn.models.guidance import needs_negative
from bestofn.models.linear_dit.config import LinearDiTConfig
from bestofn.models.residency import weight_bytes
from bestofn.service.doctor.checkpoints import Located
from bestofn.service.doctor.findings import GIB, Finding
from bestofn.service.doctor.published_sizes import published
from bestofn.service.engine.batch_sizes import sizes_for
from bestofn.service.engine.judge_loader import judge_bytes, judge_dtype
from bestofn.service.engine.loader import checkpoint_work, generator_bytes
from bestofn.service.engine.memory_share import Work, share_memory, work_of

PUBLISHED_TEXT, PUBLISHED_CHANNELS, PUBLISHED_COMPRESSION = 300, 128, 32
_DEVICES = (8, 12, 16, 24, 32, 40, 48, 80, 96, 141, 192)  # GiB that GPUs come with


@dataclass(frozen=True, slots=True)
class Needs:
    """What a generator and its judges take on a device, in bytes.

    Attributes:
        parts: weights of text_encoder, transformer and decoder.
        judges: weights of the judge, or of each in a mixture, and of a second one.
        work: bytes of one row, one prompt and one image.
        rows: rows of a candidate: two with guidance.
        tflops: TFLOP of one row's forward.
        fp8: bytes of the transformer's copy in FP8, for drafts.
    """

    parts: Mapping[str, int]
    judges: Sequence[int]
    work: Work
    rows: int
    tflops: float
    fp8: int = 0

    @property
    def weights(self) -> int:
        """Of everything."""
        return sum(self.parts.values()) + sum(self.judges)

    @property
    def slot(self) -> int:
        """Activations of denoising in one slot; FP8 drafts have slots of their own."""
        return (2 if self.fp8 else 1) * self.rows * self.work.row

    def at_work(self, slots: int, concurrent: bool) -> int:
        """Bytes of activations for denoising `slots` candidates and decoding an image, together or in turn."""
        drawn, image = slots * self.slot, self.work.image
        return self.work.prompts + (drawn + image if concurrent else max(drawn, image))

    @property
    def least(self) -> int:
        """What must fit whatever takes turns, two judges too: the hungriest part at its smallest work."""
        return max(
            self.parts["text_encoder"],
            self.parts["transformer"] + self.rows * self.work.row + self.work.prompts,
            self.parts["decoder"] + self.work.image,
            *self.judges,
        )


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How a worker divides a device's memory.

    Attributes:
        stay: parts that stay in memory, the judges among them.
        turns: parts that are read from disk whenever they are needed.
        slots: candidates denoised together.
        rows: rows of a forward for which memory suffices.
        work: bytes of the work of all slots.
        used: bytes of what stays, and of that work.
        fits: the largest part fits alone.
        concurrent: images are decoded while others are denoised.
    """

    stay: tuple[str, ...]
    turns: tuple[str, ...]
    slots: int
    rows: int
    work: int
    used: int
    fits: bool
    concurrent: bool


def plan(needs: Needs, memory: int, device: str, slots: int | None = None) -> MemoryPlan:
    """The plan of a worker for a device of type `device` ("cpu", "cuda") with `memory` bytes."""
    shared, budget = share_memory(dict(needs.parts), sum(needs.judges), memory, needs.work.reserved)
    judges = _judges(needs)
    stay: list[str] = []
    for part in reversed(residency.RELEASE_ORDER):
        if not residency.to_release(part, needs.parts, stay, budget):
            stay.append(part)
    held = sum(needs.parts[part] for part in stay) + (sum(needs.judges) if shared else 0)
    every = (*needs.parts, *judges)
    kept = tuple(part for part in every if part in stay or (part in judges and shared))
    sizes = sizes_for(device, slots, tflops=needs.tflops)
    concurrent = shared and device == "cuda"
    work = needs.at_work(sizes.slots, concurrent)
    turns = tuple(part for part in every if part not in kept)
    room = memory - held - needs.work.prompts - concurrent * needs.work.image - needs.work.overhead // 2
    rows = max(0, min(needs.rows * sizes.slots, room // needs.work.row))
    fits = needs.least + needs.work.overhead <= memory
    return MemoryPlan(kept, turns, sizes.slots, rows, work, held + work, fits, concurrent)


def _judges(needs: Needs) -> dict[str, int]:
    """The judges by name, and what they weigh."""
    more = (f"judge_{number}" for number in range(3, len(needs.judges) + 1))
    return dict(zip(("judge", "second_judge", *more), needs.judges, strict=False))


def findings(needs: Needs, memory: int, free: int, device: str, slots: int | None = None) -> Iterator[Finding]:
    """The plan in words, with what to change where something does not fit."""
    planned = plan(needs, memory, device, slots)
    weights = {**needs.parts, **_judges(needs)}
    names = {part: part.replace("_", " ") for part in weights}
    described = {part: f"{names[part]} {_size(size)}" for part, size in weights.items()}
    if needs.fp8:
        described["transformer"] += f" ({_size(needs.fp8)} of it in FP8, for drafts)"
    sizes = ", ".join(described.values())
    yield Finding("ok", "weights", f"{sizes}: {_size(needs.weights)} in all, for {_size(memory)} on this {device}")
    if not planned.fits:
        found = f"the hungriest part takes {_size(needs.least)} with its work, the device has {_size(memory)}"
        yield Finding("fail", "memory", found, _larger(needs, device))
        return
    work = (
        f"work takes about {_size(planned.work)} more, with {planned.slots} "
        f"{'candidate' if planned.slots == 1 else 'candidates'} at once ({_size(needs.work.image)} to decode an image)"
    )
    if planned.turns:
        found = f"not all stay in memory, which is slower: {' and '.join(names[part] for part in planned.turns)} "
        found += f"{'is' if len(planned.turns) == 1 else 'are'} read again when needed; {work}"
        yield Finding("warn", "memory", found, _larger(needs, device))
    elif planned.used > memory:
        most = max(
            1, (memory - needs.weights - needs.work.prompts - planned.concurrent * needs.work.image) // needs.slot
        )
        found = f"all parts stay in memory; {work}: {_size(planned.used)} in all"
        yield Finding("warn", "memory", found, f"set BESTOFN_SLOTS={most}, or draw smaller images")
    else:
        yield Finding("ok", "memory", f"all parts stay in memory; {work}: {_size(planned.used)} in all")
    if free < needs.least:
        found = f"only {_size(free)} are free now, {_size(needs.least)} are the least"
        fix = "stop what holds the rest (a worker that already runs holds its share)"
        yield Finding("warn", "free", found, fix)


def _larger(needs: Needs, device: str) -> str:
    """Which device would hold everything, and what else helps."""
    halved = 1 if device == "cuda" else 2  # a CPU computes in float32, a GPU in half of it
    there = (needs.weights - needs.fp8 + needs.at_work(1, concurrent=True)) / halved + needs.fp8
    whole = there / residency.WEIGHTS_SHARE / GIB
    fitting = next((size for size in _DEVICES if size >= whole), None)
    fix = f"a GPU of {fitting} GiB keeps everything" if fitting else f"a GPU of {whole:.0f} GiB keeps everything"
    if needs.fp8:
        fix += f"; without BESTOFN_FP8_DRAFTS it is {_size(needs.fp8)} less"
    if needs.parts["transformer"] - needs.fp8 > needs.parts["text_encoder"]:
        fix += "; the 1.6B checkpoint takes less"
    return f"{fix}; smaller images (--size) take less work, a smaller judge less weight"


def _size(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.0f} MiB"


def needs(model: Located, judges: Sequence[Located], device: torch.device, fp8_drafts: bool = False) -> Needs | None:
    """What a model and its judges take; None if one is neither here and whole, nor among the published ones."""
    weights = [size for judge in judges if (size := _judge_bytes(judge, device)) is not None]
    if len(weights) < len(judges) or model.broken:
        return None
    if model.path is None:
        return _published(model.name, weights, device, fp8_drafts)
    checkpoint = Checkpoint(model.name, model.path, model.revision)
    transformer = model.path / FOLDERS["transformer"]
    config = LinearDiTConfig.from_file(transformer / "config.json")
    calls = checkpoint.call_defaults()
    forward = forward_flops(config, config.sample_size, config.sample_size, calls.max_sequence_length)
    return Needs(
        parts=generator_bytes(checkpoint, device, fp8_drafts),
        judges=weights,
        work=checkpoint_work(checkpoint, device),
        rows=2 if needs_negative(calls.guidance_scale, config.guidance_embeds) else 1,
        tflops=forward / TERA,
        fp8=weight_bytes(transformer, FP8_DTYPE.itemsize) if fp8_drafts else 0,
    )


def pipeline_memory(model: Located, judges: Sequence[Located], device: torch.device) -> Finding:
    """Whether the weights of a pipeline and its judges fit a device; batches take what is left."""
    assert model.path is not None
    itemsize = 2 if device.type == "cuda" else 4
    weighing = [part for part, weights in pipeline_parts(model.path).items() if weights]
    pipeline = sum(weight_bytes(model.path / part, itemsize) for part in weighing)
    weights = pipeline + sum(_judge_bytes(judge, device) or 0 for judge in judges)
    memory = residency.memory_bytes(device)
    found = f"weights take {weights / GIB:.1f} GiB of {memory / GIB:.1f} on this {device}; batches take the rest"
    if weights <= residency.WEIGHTS_SHARE * memory:
        return Finding("ok", "memory", found)
    if device.type == "cuda":
        fix = "parts take turns, which is slow: take a larger GPU, or a smaller checkpoint"
        return Finding("warn", "memory", found, fix)
    return Finding("fail", "memory", found, "take a machine with more memory, or a smaller checkpoint")


def _judge_bytes(place: Located, device: torch.device) -> int | None:
    """Bytes of the judge's weights."""
    if place.broken:
        return None
    if place.kind in ADDRESSES:
        return 0
    if place.path is not None:
        return judge_bytes(place.kind or "vila", place.path, device)
    sizes = published(place.name)
    return None if sizes is None or "judge" not in sizes.parts else sizes.parts["judge"] * judge_dtype(device).itemsize


def _published(name: str, judges: Sequence[int], device: torch.device, fp8_drafts: bool) -> Needs | None:
    sizes = published(name)
    if sizes is None or "transformer" not in sizes.parts:
        return None
    dtypes = part_dtypes(device, "BF16")
    config = LinearDiTConfig.from_dict({**sizes.transformer})
    parts = {part: count * dtypes[part].itemsize for part, count in sizes.parts.items()}
    fp8 = sizes.parts["transformer"] * FP8_DTYPE.itemsize if fp8_drafts else 0
    side, shape = config.sample_size, (PUBLISHED_COMPRESSION, PUBLISHED_CHANNELS, PUBLISHED_TEXT)
    return Needs(
        parts=parts | {"transformer": parts["transformer"] + fp8},
        judges=judges,
        work=work_of(config, *shape, dtypes["transformer"].itemsize, "cuda"),
        rows=1 if config.guidance_embeds else 2,
        tflops=forward_flops(config, side, side, PUBLISHED_TEXT) / TERA,
        fp8=fp8,
    )
