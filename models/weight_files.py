"""Files of a checkpoint's part: which of them a loader reads, their headers, and what is wrong with a damaged one.

Nothing here needs torch, and nothing reads weights.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bestofn.models.errors import CheckpointError, ModelError

BASES = ("diffusion_pytorch_model", "model")
"""Names of weight files: diffusers' (generator's transformer and autoencoder), transformers' (all other parts)."""

LFS_POINTER = b"version https://git-lfs"
CHECKED = {".json", ".model", ".safetensors", ".txt", ".jinja"}
LONGEST_HEADER = 100 * 2**20  # the format's own limit


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that the loader of a part reads: those of its index, or the one file.

    Variants in the same folder (``model.fp16.safetensors``, ``diffusion_pytorch_model.int4.safetensors``) do not count.

    Raises:
        CheckpointError: there are none, one is missing, or the index names something else than files of the folder.
    """
    names = weight_names(folder)
    for name in names:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} does not exist")
    return [folder / name for name in names]


def weight_names(folder: Path) -> list[str]:
    """Names of a part's weight files, as its index or its files say.

    Raises:
        CheckpointError: there are none, or the index names something else than safetensors files of the folder.
    """
    for base in BASES:
        index, single = folder / f"{base}.safetensors.index.json", f"{base}.safetensors"
        # transformers prefers the single file, diffusers the index
        if index.is_file() and not (base == "model" and (folder / single).is_file()):
            return _indexed(index)
        if (folder / single).is_file():
            return [single]
    raise CheckpointError(f"{folder} has no weights: {' or '.join(f'{base}.safetensors' for base in BASES)} is needed")


def _indexed(index: Path) -> list[str]:
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise CheckpointError(f"{index} must hold weight_map, from the name of each weight to its file")
    names = sorted(set(map(str, table.values())))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index} names {name!r}: only safetensors files of the same folder are read")
    return names


def header(file: Path) -> dict[str, dict[str, Any]]:
    """A safetensors file's table of contents: dtype, shape and data_offsets of each weight.

    Raises:
        CheckpointError: the file is no safetensors file, or a damaged one; the message says how.
    """
    check_file(file)
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > LONGEST_HEADER:
            raise CheckpointError(f"{file} is not a safetensors file")
        text = stream.read(length)
    if len(text) < length:
        raise CheckpointError(f"{file} is cut off within its header: copy or download it again")
    try:
        table: dict[str, dict[str, Any]] = json.loads(text)
        table.pop("__metadata__", None)
        ends = [_end(entry) for entry in table.values()]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{file} is not a safetensors file: its header cannot be read") from None
    whole = 8 + length + max(ends, default=0)
    if size < whole:
        raise CheckpointError(f"{file} is cut off at {100 * size // whole}%: copy or download it again")
    return table


def _end(entry: dict[str, Any]) -> int:
    """End of a weight's bytes; raises for an entry without dtype or shape."""
    if not entry["dtype"].isupper() or math.prod(entry["shape"]) < 0:
        raise ValueError
    return int(entry["data_offsets"][1])


def check_part(folder: Path, weights: bool = True) -> None:
    """Check the files of a part without reading weights.

    Args:
        folder: such as ``transformer``.
        weights: whether the part has weights; a tokenizer has none.

    Raises:
        CheckpointError: a file is empty, a Git LFS pointer, cut off or missing; the message names it.
    """
    for file in sorted(folder.glob("*")):
        if file.suffix in CHECKED and file.suffix != ".safetensors" and file.is_file():
            check_file(file)
    if weights:
        for file in weight_files(folder):
            header(file)


def check_file(file: Path) -> None:
    """Raise CheckpointError for a missing or empty file and for the text that Git LFS leaves in place of one."""
    try:
        with file.open("rb") as stream:
            start = stream.read(len(LFS_POINTER))
    except FileNotFoundError:
        raise CheckpointError(f"{file} does not exist") from None
    if start == LFS_POINTER:
        raise CheckpointError(f"{file} is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository")
    if not start:
        raise CheckpointError(f"{file} is empty: copy or download it again")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: the file is missing, damaged or holds something else.
    """
    check_file(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return content


def one_line(error: Exception) -> str:
    """A library's message on one line, behind its class where that says more than ValueError and OSError do."""
    text = " ".join(str(error).split())
    return text if text and isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"


@contextmanager
def refused(folder: Path) -> Iterator[None]:
    """Raise CheckpointError, in one line with the folder, for an error of any type that its files cause in a library.

    A field of the wrong type may be a TypeError, an AttributeError or a division by zero.
    """
    try:
        yield
    except (ModelError, MemoryError):
        raise
    except Exception as error:
        raise CheckpointError(f"{folder}: {one_line(error)}") from error


def parts_to_fetch(folder: Path) -> Iterator[str]:
    """Weight files to download for a checkpoint whose small files are in a folder, as ``part/name``.

    A folder with a config.json of its own is a part too, as of transformers' models.
    """
    if (folder / "config.json").is_file():
        index = folder / "model.safetensors.index.json"
        yield from _indexed(index) if index.is_file() else ["model.safetensors"]
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        for base in BASES:
            index = part / f"{base}.safetensors.index.json"
            names: Sequence[str] = _indexed(index) if index.is_file() else [f"{base}.safetensors"]
            yield from (f"{part.name}/{name}" for name in names)


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `out` when the block ends without an error."""
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh, stale = (out.with_name(f".{out.name}.{os.getpid()}{end}") for end in ("", ".old"))
    try:
        yield fresh
        if replaced := out.exists():
            os.replace(out, stale)
        os.replace(fresh, out)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    if replaced:
        shutil.rmtree(stale)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of `path` when the block ends without an error: none reads half of it."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def copy_contents(source: Path, target: Path) -> None:
    """Copy a file, or a folder with all in it: contents alone, since the modes of a checkpoint may be read-only."""
    if not source.is_dir():
        shutil.copyfile(source, target)
        return
    target.mkdir()
    for item in source.iterdir():
        copy_contents(item, target / item.name)
