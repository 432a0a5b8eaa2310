"""Which parts of a generator stay in memory when not all of them fit. Pure policy, and how much memory there is."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bestofn.models.errors import CheckpointError

# Parts in the order in which they give way to another: text is needed once a prompt, the transformer at every step.
RELEASE_ORDER = ("text_encoder", "decoder", "transformer")

# Share of the memory that weights may take; the rest is for activations and everything else on the machine.
WEIGHTS_SHARE = 0.8

VARIANT = re.compile(r"\.(fp16|bf16)\b")


def to_release(wanted: str, sizes: Mapping[str, int], resident: Sequence[str], budget: int) -> list[str]:
    """Parts to drop before ``wanted`` is loaded.

    Args:
        wanted: the part that is needed now.
        sizes: bytes of every part.
        resident: parts in memory.
        budget: bytes that all parts may take together.

    Returns:
        The parts to drop, in order; every other part when ``wanted`` does not fit even alone.
    """
    held = [part for part in RELEASE_ORDER if part in resident and part != wanted]
    dropped: list[str] = []
    while held and sizes[wanted] + sum(sizes[part] for part in held) > budget:
        dropped.append(held.pop(0))
    return dropped


def weight_bytes(folder: Path, itemsize: int) -> int:
    """Bytes of a part's weights when held with ``itemsize`` bytes a value; reads only the files' headers."""
    files = weight_files(folder)
    if not files:
        raise CheckpointError(f"{folder} holds no safetensors file")
    return sum(itemsize * _product(tensor["shape"]) for file in files for tensor in header(file).values())


def weight_files(folder: Path) -> list[Path]:
    """A part's safetensors files, without variants such as ``model.fp16-00001-of-00002.safetensors``, which nothing
    reads."""
    return [file for file in sorted(folder.glob("*.safetensors")) if not VARIANT.search(file.name)]


def stored_dtype(folder: Path) -> str:
    """Most frequent dtype of a part's stored weights, as safetensors spells it: BF16, F16, F32."""
    counts: dict[str, int] = {}
    for file in weight_files(folder):
        for tensor in header(file).values():
            counts[tensor["dtype"]] = counts.get(tensor["dtype"], 0) + _product(tensor["shape"])
    return max(counts, key=lambda name: counts[name]) if counts else "F32"


def header(file: Path) -> dict[str, dict[str, Any]]:
    """A safetensors file's table of contents."""
    with file.open("rb") as stream:
        table = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    table.pop("__metadata__", None)
    return table  # type: ignore[no-any-return]


def _product(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def memory_bytes(device: torch.device) -> int:
    """Memory of the device; of a CPU, the machine's or, in a container, its limit."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return total
