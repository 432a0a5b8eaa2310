"""From a located checkpoint, or from the published sizes of one that is not here, to what it needs on a device."""

from collections.abc import Sequence

import torch

from bestofn.judge.names import ADDRESSES
from bestofn.kernels.fp8 import EIGHT_BITS
from bestofn.models.checkpoint import Checkpoint, pipeline_parts
from bestofn.models.defaults import FOLDERS, part_dtypes
from bestofn.models.flops import TERA, forward_flops
from bestofn.models.guidance import needs_negative
from bestofn.models.linear_dit.config import LinearDiTConfig
from bestofn.models.residency import WEIGHTS_SHARE, memory_bytes, weight_bytes
from bestofn.service.doctor.checkpoints import Located
from bestofn.service.doctor.findings import Finding
from bestofn.service.doctor.memory import GIB, Needs, needs_of
from bestofn.service.doctor.published_sizes import published
from bestofn.service.engine.judge_loader import judge_bytes, judge_dtype
from bestofn.service.engine.loader import checkpoint_work, generator_bytes

PUBLISHED_TEXT, PUBLISHED_CHANNELS, PUBLISHED_COMPRESSION = 300, 128, 32


def needs(model: Located, judges: Sequence[Located], device: torch.device, fp8_drafts: bool = False) -> Needs | None:
    """What a model and its judges take; None if one is neither here and whole, nor among the published ones."""
    weights = [size for judge in judges if (size := _judge(judge, device)) is not None]
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
        eight_bit=weight_bytes(transformer, EIGHT_BITS.itemsize) if fp8_drafts else 0,
    )


def pipeline_memory(model: Located, judges: Sequence[Located], device: torch.device) -> Finding:
    """Whether the weights of a pipeline and its judges fit a device; batches take what is left."""
    assert model.path is not None
    itemsize = 2 if device.type == "cuda" else 4
    weighing = [part for part, weights in pipeline_parts(model.path).items() if weights]
    pipeline = sum(weight_bytes(model.path / part, itemsize) for part in weighing)
    weights, memory = pipeline + sum(_judge(judge, device) or 0 for judge in judges), memory_bytes(device)
    found = f"weights take {weights / GIB:.1f} GiB of {memory / GIB:.1f} on this {device}; batches take the rest"
    if weights <= WEIGHTS_SHARE * memory:
        return Finding("ok", "memory", found)
    if device.type == "cuda":
        fix = "parts take turns, which is slow: take a larger GPU, or a smaller checkpoint"
        return Finding("warn", "memory", found, fix)
    return Finding("fail", "memory", found, "take a machine with more memory, or a smaller checkpoint")


def _judge(place: Located, device: torch.device) -> int | None:
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
    eight_bit = sizes.parts["transformer"] * EIGHT_BITS.itemsize if fp8_drafts else 0
    return needs_of(
        parts | {"transformer": parts["transformer"] + eight_bit},
        judges,
        config,
        PUBLISHED_COMPRESSION,
        PUBLISHED_CHANNELS,
        PUBLISHED_TEXT,
        dtypes["transformer"].itemsize,
        not config.guidance_embeds,
        forward_flops(config, config.sample_size, config.sample_size, PUBLISHED_TEXT) / TERA,
        eight_bit,
    )
