"""Random weights written straight to safetensors, tensor by tensor, so that a file may be larger than the memory."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bestofn.models.safetensors_writer import StoredTensor, write_shards

CHUNK = 2**22  # values drawn at a time


@dataclass(frozen=True)
class RandomTensor(StoredTensor):
    """A tensor to be written (BF16 or F32), and how it is filled."""

    constant: float | None  # None: random


def another(seed: int | None, number: int) -> int | None:
    """The seed of a checkpoint's next part; None stays None."""
    return None if seed is None else seed + number


def write_safetensors(folder: Path, stem: str, tensors: Iterable[RandomTensor], seed: int | None) -> None:
    """Write ``<stem>.safetensors``, or shards and their index (`write_shards`).

    With no seed, random tensors are left as holes, which read as zeros and take no disk.
    """
    random = None if seed is None else np.random.default_rng(seed)

    def chunks(tensor: RandomTensor) -> Iterator[memoryview] | None:
        if random is None and tensor.constant is None:
            return None
        return (chunk.data for chunk in _values(tensor, random))

    write_shards(folder, stem, tensors, chunks)


def _values(tensor: RandomTensor, random: np.random.Generator | None) -> Iterator[np.ndarray[Any, Any]]:
    """Values in memory order, as the bits of their dtype.

    Random values have a random sign and mantissa and the exponent nearest to 1 / sqrt(inputs). They are scaled like
    normal values and several times as fast to draw.
    """
    count = math.prod(tensor.shape)
    narrow = tensor.dtype == "BF16"
    kind = np.uint16 if narrow else np.uint32
    inputs = math.prod(tensor.shape[1:]) if len(tensor.shape) > 1 else tensor.shape[0]
    exponent = 127 + round(math.log2(1 / math.sqrt(inputs)) - 0.5)
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        if tensor.constant is not None:
            wide = np.full(size, tensor.constant, dtype="<f4").view(np.uint32)
            yield (wide >> 16).astype(kind) if narrow else wide
            continue
        assert random is not None
        if narrow:
            yield (random.integers(0, 2**16, size, dtype=np.uint16) & np.uint16(0x807F)) | np.uint16(exponent << 7)
        else:
            yield (random.integers(0, 2**32, size, dtype=np.uint32) & np.uint32(0x807FFFFF)) | np.uint32(exponent << 23)
