"""Images with captions on disk: folders, their metadata.jsonl, and webdataset shards, each pair with its place."""

import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bestofn.models.errors import ModelError

IMAGES = (".png", ".jpg", ".jpeg", ".webp")
CAPTIONS = (".txt", ".caption", ".json")  # the first that is there counts
CAPTION_KEYS = ("prompt", "caption", "text")  # keys of JSON; SANA's own shards have `prompt`
METADATA = "metadata.jsonl"
TAKES = (
    f"it takes {', '.join(IMAGES)}, each with a caption of the same name ({', '.join(CAPTIONS)}) or in {METADATA}, "
    "or webdataset shards (*.tar) of such pairs"
)


@dataclass(frozen=True)
class ImageTextPair:
    """An image's encoded bytes and what it shows.

    Attributes:
        name: name of the image's file, or of the shard with the member.
    """

    name: str
    image: bytes
    caption: str


def pairs(source: Path) -> Iterator[ImageTextPair]:
    """The pairs of a folder, in order of their names: ``a.png`` with ``a.txt``, and pairs in ``*.tar``.

    Names that begin with ``._`` are skipped: macOS leaves such files in folders and archives.

    Raises:
        ModelError: there are no pairs, an image has no caption, or a file cannot be read; with the file's name.
    """
    files = sorted(path for path in source.rglob("*") if not path.name.startswith("._") and path.is_file())
    listed: dict[Path, str] = {}
    for path in files:
        if path.name == METADATA:
            listed |= _metadata(path)
    named = {(path.parent, path.name.lower()): path for path in files}
    found = False
    for path in files:
        ending = path.suffix.lower()
        if ending == ".tar":
            for pair in _shard(path):
                found = True
                yield pair
        elif ending in IMAGES:
            found = True
            yield ImageTextPair(str(path), _read(path), listed[path] if path in listed else _caption(path, named))
    if not found:
        raise ModelError(f"{source} has no images: {TAKES}")


def _caption(image: Path, named: Mapping[tuple[Path, str], Path]) -> str:
    for ending in CAPTIONS:
        if file := named.get((image.parent, f"{image.stem}{ending}".lower())):
            return _caption_of(str(file), ending, _read(file))
    raise ModelError(f"{image} has no caption: write it to {image.stem}{CAPTIONS[0]} in the same folder")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error


def _metadata(path: Path) -> dict[Path, str]:
    """Images that a metadata.jsonl names, as of Hugging Face's image folders, with their captions."""
    captions = {}
    for number, line in enumerate(_text(str(path), _read(path)).split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            fields = _object(where, line)
            name = fields.get("file_name")
            if not isinstance(name, str) or not (path.parent / name).is_file():
                raise ModelError(f'{where}: "file_name" must name a file in that folder, got {str(name)[:80]!r}')
            captions[path.parent / name] = _field(where, fields)
    return captions


def _caption_of(name: str, ending: str, content: bytes) -> str:
    text = _text(name, content)
    return _field(name, _object(name, text)) if ending == ".json" else text.strip()


def _text(name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelError(f"{name} is not UTF-8 (byte {error.start}): save it as UTF-8") from error


def _object(name: str, text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{name} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ModelError(f"{name} must hold a JSON object")
    return fields


def _field(name: str, fields: Mapping[str, Any]) -> str:
    for key in CAPTION_KEYS:
        if isinstance(caption := fields.get(key), str):
            return caption.strip()
    raise ModelError(f"{name} has no caption: one of {', '.join(CAPTION_KEYS)} must be text")


def _shard(path: Path) -> Iterator[ImageTextPair]:
    """Neighbouring members of one name up to its first dot are a sample, as webdataset has it."""
    key = ""
    parts: dict[str, tuple[str, bytes]] = {}  # by ending: the member's name and content
    place = str(path)
    try:
        with tarfile.open(path) as tar:
            while (member := tar.next()) is not None:
                place = f"{path}:{member.name}"
                folder, _, file = member.name.rpartition("/")
                if not member.isfile() or file.startswith("._"):
                    continue
                stem, _, ending = file.partition(".")
                if (name := f"{folder}/{stem}") != key:
                    yield from _sample(path, parts)
                    key, parts = name, {}
                if f".{ending.lower()}" in (*IMAGES, *CAPTIONS):
                    stream = tar.extractfile(member)
                    assert stream is not None
                    parts[f".{ending.lower()}"] = member.name, stream.read()
            yield from _sample(path, parts)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ModelError(f"{place} cannot be read: {error}") from error


def _sample(path: Path, parts: Mapping[str, tuple[str, bytes]]) -> Iterator[ImageTextPair]:
    for ending in IMAGES:
        if ending in parts:
            member, image = parts[ending]
            written = next((one for one in CAPTIONS if one in parts), None)
            if written is None:
                raise ModelError(f"{path}:{member} has no caption: its sample needs one of {', '.join(CAPTIONS)}")
            file, caption = parts[written]
            yield ImageTextPair(f"{path}:{member}", image, _caption_of(f"{path}:{file}", written, caption))
