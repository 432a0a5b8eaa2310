"""Which parts of a generator stay in memory when not all of them fit. Pure policy, and how much memory there is."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from bestofn.models.cgroups import memory_limit
from bestofn.models.weight_files import header, weight_files

# Parts in the order in which they are offloaded: text is needed once a prompt, the transformer at every step.
RELEASE_ORDER = ("text_encoder", "decoder", "transformer")

# Share of the memory that weights may take; the rest is for activations and everything else on the machine.
WEIGHTS_SHARE = 0.8


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
    shapes = (tensor["shape"] for file in weight_files(folder) for tensor in header(file).values())
    return sum(itemsize * math.prod(shape) for shape in shapes)


def stored_dtype(folder: Path) -> str:
    """Most frequent dtype of a part's stored weights, as safetensors spells it: BF16, F16, F32."""
    counts: dict[str, int] = {}
    for file in weight_files(folder):
        for tensor in header(file).values():
            counts[tensor["dtype"]] = counts.get(tensor["dtype"], 0) + math.prod(tensor["shape"])
    return max(counts, key=lambda name: counts[name]) if counts else "F32"


def memory_bytes(device: torch.device) -> int:
    """Memory of the device that this process may use; of a CPU, the machine's or, in a control group, its limit."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return int(total * torch.cuda.get_per_process_memory_fraction(device))
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = memory_limit()
    return total if limit is None else min(total, limit)
