"""A checkpoint of other depth: each block one of the source's or a new one, streamed from disk to disk.

Only the transformer's blocks and its ``num_layers`` differ; every other weight and part is copied byte by byte. Block
importances are left out: they were the source's.
"""

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bestofn.models.checkpoint import Checkpoint
from bestofn.models.errors import ModelError
from bestofn.models.linear_dit.config import LinearDiTConfig
from bestofn.models.linear_dit.model import LinearDiT
from bestofn.models.linear_dit.weights import check_keys, file_shapes
from bestofn.models.safetensors_writer import ITEMSIZE, StoredTensor, write_json, write_shards
from bestofn.models.weight_files import copy_contents, header, weight_files, whole_folder

CHUNK = 2**20  # bytes copied, or values drawn, at a time
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
BLOCKS = "transformer_blocks."

Initial = Callable[[str], tuple[float, float]]
"""Of a new block's weight, by its name inside the block: mean and standard deviation."""


@dataclass(frozen=True)
class _Place:
    """Where a weight's bytes lie."""

    file: Path
    start: int
    stored: StoredTensor


@dataclass(frozen=True)
class _Moved(StoredTensor):
    """A weight of the result: a copy of the one at ``source``, or new."""

    source: _Place | None


def rewrite(
    checkpoint: Checkpoint, out: Path, blocks: Sequence[int | None], initial: Initial, seed: int, story: str
) -> Path:
    """Write a checkpoint whose transformer has the given blocks.

    Memory stays at a few megabytes whatever the size; ``out`` appears only when it is whole.

    Args:
        checkpoint: the source.
        out: a new or empty folder.
        blocks: the result's blocks in their order: indices into the source's, None for a new block.
        initial: how weights of new blocks are drawn.
        seed: seed of new weights.
        story: how it was made, for the folder's README.

    Returns:
        ``out``.

    Raises:
        ModelError: ``out`` is not empty, or the disk has not enough space.
        CheckpointError: naming the weight of the source that does not fit its config.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out} is not empty: name a new folder")
    source = checkpoint.path / "transformer"
    config = LinearDiTConfig.from_file(source / "config.json")
    places = _places(source)
    check_keys(_shapes(config), {name: place.stored.shape for name, place in places.items()}, source)
    tensors = [
        _moved(name, shape, blocks, places)
        for name, shape in _shapes(replace(config, num_layers=len(blocks))).items()
    ]  # fmt: skip
    others = checkpoint.others()
    random = torch.Generator().manual_seed(seed)
    with whole_folder(out) as fresh:
        _check_space(out.parent, sum(tensor.nbytes for tensor in tensors) + sum(map(_size, others)))
        write_shards(
            fresh / "transformer",
            "diffusion_pytorch_model",
            tensors,
            lambda tensor: _copied(tensor.source) if tensor.source else _drawn(tensor, initial, random),
        )
        fields = checkpoint.config("transformer", "config.json")
        write_json(fresh / "transformer" / "config.json", fields | {"num_layers": len(blocks)})
        for path in others:
            copy_contents(path, fresh / path.name)
        (fresh / "README.md").write_text(
            f"Made by bestofn from {checkpoint.name} (revision {checkpoint.revision}), whose licence holds for it: "
            f"{story}.\n",
            encoding="utf-8",
        )
    return out


def _shapes(config: LinearDiTConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return file_shapes(LinearDiT(config))


def _places(folder: Path) -> dict[str, _Place]:
    """Every weight of a transformer's files."""
    places = {}
    for file in weight_files(folder):
        with file.open("rb") as stream:
            body = 8 + int.from_bytes(stream.read(8), "little")
        for name, entry in header(file).items():
            if entry["dtype"] not in ITEMSIZE:
                raise ModelError(f"{file}: weight {name!r} is {entry['dtype']}, known are {', '.join(ITEMSIZE)}")
            stored = StoredTensor(name, tuple(entry["shape"]), entry["dtype"])
            places[name] = _Place(file, body + entry["data_offsets"][0], stored)
    return places


def _moved(name: str, shape: tuple[int, ...], blocks: Sequence[int | None], places: dict[str, _Place]) -> _Moved:
    if not name.startswith(BLOCKS):
        return _Moved(name, shape, places[name].stored.dtype, places[name])
    index, _, inside = name.removeprefix(BLOCKS).partition(".")
    block = blocks[int(index)]
    if block is None:
        return _Moved(name, shape, places[f"{BLOCKS}0.{inside}"].stored.dtype, None)
    place = places[f"{BLOCKS}{block}.{inside}"]
    return _Moved(name, shape, place.stored.dtype, place)


def _copied(place: _Place) -> Iterator[bytes]:
    with place.file.open("rb") as stream:
        stream.seek(place.start)
        left = place.stored.nbytes
        while left:
            chunk = stream.read(min(CHUNK, left))
            if not chunk:
                raise ModelError(f"{place.file} ends inside of weight {place.stored.name!r}: fetch it again")
            left -= len(chunk)
            yield chunk


def _drawn(tensor: _Moved, initial: Initial, random: torch.Generator) -> Iterator[memoryview]:
    mean, deviation = initial(tensor.name.removeprefix(BLOCKS).partition(".")[2])
    count = math.prod(tensor.shape)
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        values = (
            torch.randn(size, generator=random).mul_(deviation).add_(mean) if deviation else torch.full((size,), mean)
        )
        yield values.to(DTYPES[tensor.dtype]).view(torch.uint8).numpy().data


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ModelError(
            f"the result takes {needed / 2**30:.1f} GiB and {folder.resolve()} has {free / 2**30:.1f} GiB free: "
            "free some, or write elsewhere"
        )
