"""Random weights written straight to safetensors, tensor by tensor, so that a file may be larger than the memory."""

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SHARD_BYTES = 5 * 10**9
CHUNK = 2**22  # values drawn at a time


@dataclass(frozen=True)
class RandomTensor:
    """A tensor to be written: its place, shape, dtype (BF16 or F32) and how it is filled."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    constant: float | None  # None: random

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return math.prod(self.shape) * (2 if self.dtype == "BF16" else 4)


def another(seed: int | None, number: int) -> int | None:
    """The seed of a checkpoint's next part; None stays None."""
    return None if seed is None else seed + number


def write_safetensors(folder: Path, stem: str, tensors: Iterable[RandomTensor], seed: int | None) -> None:
    """Write ``<stem>.safetensors``, or shards of at most 5 GB and their index, as transformers and diffusers do.

    With no seed, random tensors are left as holes, which read as zeros and take no disk.
    """
    shards: list[list[RandomTensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(t.nbytes for t in shards[-1]) + tensor.nbytes > SHARD_BYTES:
            shards.append([])
        shards[-1].append(tensor)
    folder.mkdir(parents=True, exist_ok=True)
    random = None if seed is None else np.random.default_rng(seed)
    names = (
        [f"{stem}.safetensors"]
        if len(shards) == 1
        else [f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    )
    for name, shard in zip(names, shards, strict=True):
        _write_file(folder / name, shard, random)
    if len(shards) > 1:
        place = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(tensor.nbytes for shard in shards for tensor in shard)
        index = {"metadata": {"total_size": total}, "weight_map": place}
        write_json(folder / f"{stem}.safetensors.index.json", index)


def _write_file(path: Path, tensors: list[RandomTensor], random: np.random.Generator | None) -> None:
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        span = [offset, offset + tensor.nbytes]
        table[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": span}
        offset += tensor.nbytes
    head = json.dumps(table).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as stream:
        stream.write(len(head).to_bytes(8, "little") + head)
        for tensor in tensors:
            if random is None and tensor.constant is None:
                stream.seek(tensor.nbytes, os.SEEK_CUR)
                continue
            for chunk in _values(tensor, random):
                stream.write(chunk.data)
        stream.truncate()


def _values(tensor: RandomTensor, random: np.random.Generator | None) -> Iterator[np.ndarray[Any, Any]]:
    """Values in the order of memory, as the bits of their dtype. Random ones have a random sign and mantissa under the
    power of two nearest to 1 / sqrt(inputs): as well scaled as normal ones, and several times as fast to draw."""
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


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an indented JSON file, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
