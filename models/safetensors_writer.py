"""Safetensors files written tensor by tensor, in shards, so that a checkpoint may be larger than the memory."""

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

SHARD_BYTES = 5 * 10**9
ITEMSIZE = {"BF16": 2, "F16": 2, "F32": 4}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor to be written: its name, shape and dtype (a key of `ITEMSIZE`)."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return math.prod(self.shape) * ITEMSIZE[self.dtype]


T = TypeVar("T", bound=StoredTensor)
Chunks = Iterable[bytes | memoryview] | None


def write_shards(folder: Path, stem: str, tensors: Iterable[T], chunks: Callable[[T], Chunks]) -> None:
    """Write ``<stem>.safetensors``, or shards of at most 5 GB and their index, as transformers and diffusers do.

    Args:
        folder: made when absent.
        stem: beginning of the files' names.
        tensors: in the order of the files.
        chunks: a tensor's bytes, little-endian and row-major, in pieces; None leaves a hole, which reads as zeros.
    """
    shards: list[list[T]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(t.nbytes for t in shards[-1]) + tensor.nbytes > SHARD_BYTES:
            shards.append([])
        shards[-1].append(tensor)
    folder.mkdir(parents=True, exist_ok=True)
    names = (
        [f"{stem}.safetensors"]
        if len(shards) == 1
        else [f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    )
    for name, shard in zip(names, shards, strict=True):
        _write_file(folder / name, shard, chunks)
    if len(shards) > 1:
        place = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(tensor.nbytes for shard in shards for tensor in shard)
        index = {"metadata": {"total_size": total}, "weight_map": place}
        write_json(folder / f"{stem}.safetensors.index.json", index)


def _write_file(path: Path, tensors: Sequence[T], chunks: Callable[[T], Chunks]) -> None:
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
            pieces = chunks(tensor)
            if pieces is None:
                stream.seek(tensor.nbytes, os.SEEK_CUR)
                continue
            for piece in pieces:
                stream.write(piece)
        stream.truncate()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an indented JSON file, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
