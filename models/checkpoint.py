"""Checkpoints: a name becomes a local folder in diffusers layout, its revision, and its further files."""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bestofn.models.errors import CheckpointError
from bestofn.models.instruction import COMPLEX_HUMAN_INSTRUCTION

EMBEDDED = {"shapes": Path(__file__).parent / "weights" / "shapes"}
PIPELINES = ("SanaPipeline", "SanaSprintPipeline")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")

IMPORTANCE = "importance.json"
"""File with the importance of each layer of the transformer. It is not part of the revision: it only affects jobs that
ask for another depth, and these name the layers that they run."""

# Files that are read; variants (fp16) and duplicates in other formats stay on the hub.
HUB_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
HUB_IGNORE = ["*.fp16.safetensors", "*.fp16*", "*.bf16.safetensors"]

# A file above this size is identified by its size, its header and samples spread over it.
WHOLE_FILE = 64 * 2**20
SAMPLES, SAMPLE_BYTES = 64, 2**16


@dataclass(frozen=True)
class CallDefaults:
    """What a call means when the request leaves it open, in diffusers' names."""

    num_inference_steps: int = 20
    guidance_scale: float = 4.5
    max_sequence_length: int = 300
    complex_human_instruction: tuple[str, ...] = COMPLEX_HUMAN_INSTRUCTION


SPRINT_DEFAULTS = CallDefaults(num_inference_steps=2)


@dataclass(frozen=True)
class Checkpoint:
    """A SANA checkpoint on this machine.

    Attributes:
        name: as the operator gave it, without the revision.
        path: folder with ``model_index.json`` and the parts that it names.
        revision: the hub's commit, or 12 hex digits over the contents of a folder.
    """

    name: str
    path: Path
    revision: str

    @classmethod
    def resolve(cls, name: str) -> "Checkpoint":
        """Find a checkpoint by name.

        Args:
            name: ``shapes`` (the embedded default), a folder, or a hub name such as
                ``Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers@main``. With HF_HUB_OFFLINE set, hub names are
                looked up in the local cache only.

        Raises:
            CheckpointError: saying what was looked for and where.
        """
        folder = EMBEDDED.get(name, Path(name).expanduser())
        if folder.is_dir():
            return cls(name, _checked(folder), folder_revision(folder))
        repository, _, revision = name.partition("@")
        if name in EMBEDDED or not HUB_NAME.fullmatch(repository) or name.startswith((".", "/", "~")):
            raise CheckpointError(
                f"no checkpoint {name!r}: {folder} is no folder, and a hub name looks like owner/name@revision"
            )
        path = download(repository, revision or "main")
        return cls(repository, _checked(path), path.name)

    def config(self, *parts: str) -> dict[str, Any]:
        """Parse one of the checkpoint's JSON files, such as ``config("scheduler", "scheduler_config.json")``."""
        return _read_json(self.path.joinpath(*parts))

    @property
    def is_sprint(self) -> bool:
        """Whether this is a SANA-Sprint checkpoint: guidance is an input, a few consistency steps."""
        return bool(self.config("model_index.json")["_class_name"] == "SanaSprintPipeline")

    def component(self, part: str) -> str:
        """Class name of a part, from ``model_index.json``."""
        return str(self.config("model_index.json")[part][1])

    def call_defaults(self) -> CallDefaults:
        """Defaults from ``bestofn.json``, where the checkpoint has one; else those of diffusers' pipeline."""
        base = SPRINT_DEFAULTS if self.is_sprint else CallDefaults()
        path = self.path / "bestofn.json"
        if not path.exists():
            return base
        given = _read_json(path)
        unknown = sorted(given.keys() - vars(base).keys())
        if unknown:
            raise CheckpointError(f"{path}: unknown field {unknown[0]!r}, known are {', '.join(vars(base))}")
        merged = vars(base) | given
        merged["complex_human_instruction"] = tuple(merged["complex_human_instruction"] or ())
        return CallDefaults(**merged)

    def block_importance(self) -> tuple[float, ...] | None:
        """Importance of each layer of the transformer; None if it is not measured.

        Raises:
            CheckpointError: the file holds something else than a number for each block.
        """
        path = self.path / IMPORTANCE
        if not path.exists():
            return None
        values: Any = _read_json(path).get("block_importance")
        layers = self.config("transformer", "config.json")["num_layers"]
        numbers = isinstance(values, list) and all(isinstance(value, int | float) for value in values)
        if not numbers or len(values) != layers or not all(map(math.isfinite, values)):
            raise CheckpointError(
                f"{path} must hold block_importance, {layers} numbers: `bestofn models importance` measures them"
            )
        return tuple(map(float, values))


def importance_order(importance: Sequence[float]) -> list[int]:
    """Blocks from the most important to the least; of equals the earlier comes first."""
    return sorted(range(len(importance)), key=lambda block: -importance[block])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return content


def _checked(folder: Path) -> Path:
    if not (folder / "model_index.json").exists():
        raise CheckpointError(f"{folder.absolute()} has no model_index.json: a folder in diffusers layout is needed")
    index = _read_json(folder / "model_index.json")
    name = index.get("_class_name")
    if name not in PIPELINES:
        raise CheckpointError(
            f"{folder / 'model_index.json'}: pipeline {name!r} is not supported, only {' and '.join(PIPELINES)}"
        )
    for part in ("transformer", "text_encoder", "tokenizer", "vae", "scheduler"):
        if part not in index or not (folder / part).is_dir():
            raise CheckpointError(f"{folder} has no {part!r}: the whole diffusers layout is needed")
    return folder


def download(repository: str, revision: str) -> Path:
    """The folder of a hub repository's commit, fetched if it is not in the local cache; its name is the commit's hash.

    Raises:
        CheckpointError: the repository or the revision is neither on the hub nor in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_OFFLINE

    try:
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=HUB_PATTERNS, ignore_patterns=HUB_IGNORE)
        )
    except (OSError, ValueError) as error:  # the hub's errors derive from these
        where = "the local cache (HF_HUB_OFFLINE is set)" if HF_HUB_OFFLINE else "the hub or the local cache"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{repository}@{revision} was not found in {where}: {reason}") from error


def bytes_to_download(repository: str, revision: str) -> int:
    """What `download` would fetch.

    Raises:
        CheckpointError: the hub cannot be reached, or does not have the repository or the revision.
    """
    from huggingface_hub import snapshot_download

    try:
        files = snapshot_download(
            repository, revision=revision, allow_patterns=HUB_PATTERNS, ignore_patterns=HUB_IGNORE, dry_run=True
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the hub does not find {repository}@{revision}: {error}") from error
    return sum(file.file_size for file in files if file.will_download)


def cached(repository: str, revision: str) -> Path | None:
    """The folder of a hub repository's commit in the local cache, or None; asks no network.

    The hub's client stores the list of a commit's files before the first of them. Each file gets its name in the folder
    when all its bytes are there. So an interrupted download is None. Without a list, as older clients leave the cache,
    any folder counts.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=HUB_PATTERNS,
                ignore_patterns=HUB_IGNORE,
                local_files_only=True,
            )
        )
    except (OSError, ValueError):
        return None


def folder_revision(folder: Path) -> str:
    """12 hex digits that change with any file of the checkpoint; hidden files, READMEs and `IMPORTANCE` do not count.

    Files above 64 MiB are sampled, so a 10 GB checkpoint takes well under a second.
    """
    digest = hashlib.sha256()
    files = [p for p in folder.rglob("*") if p.is_file() and p.suffix in {".json", ".safetensors", ".model", ".txt"}]
    files = [file for file in files if file != folder / IMPORTANCE]
    for file in sorted(files, key=lambda p: p.relative_to(folder).as_posix()):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder).as_posix()}\0{size}\0".encode())
        with file.open("rb") as stream:
            if size <= WHOLE_FILE:
                digest.update(stream.read())
            else:
                for i in range(SAMPLES):
                    stream.seek((size - SAMPLE_BYTES) * i // (SAMPLES - 1))
                    digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()[:12]
