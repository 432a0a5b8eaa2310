"""Checkpoints of the hub: what a download takes, and what of it is in the local cache.

Weights are chosen by the index that the loaders read. Variants and copies in other formats stay on the hub.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bestofn.models.errors import CheckpointError
from bestofn.models.weight_files import parts_to_fetch

PICKLES = {".pth", ".pt", ".ckpt", ".bin"}
SMALL_FILES = ["*.json", "*.model", "*.txt", "*.jinja"]
"""Configs, indexes and tokenizers; they are fetched first, because the indexes name the weights."""


def is_hub_name(name: str) -> bool:
    """Whether this is spelled like a repository of the hub, owner/name or owner/name@revision, not like a folder."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(@.*)?", name) is not None


def local_folder(name: str, kind: str) -> Path | None:
    """The folder on this machine that a name means, or None for a hub name; a path that exists is a path.

    Args:
        name: a folder, or a hub name with or without ``@revision``.
        kind: what is looked for, for the message: checkpoint, judge.

    Raises:
        CheckpointError: the name is a file's, or neither a folder's nor a hub name.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        pickled = f": `bestofn models convert {path} --out FOLDER` makes one of a SANA .pth"
        hint = pickled if path.suffix in PICKLES else ""
        raise CheckpointError(f"{path} is a file, and a {kind} is a folder{hint}")
    if not is_hub_name(name):
        raise CheckpointError(
            f"no {kind} {name!r}: {path} is not a folder, and a hub name looks like owner/name@revision"
        )
    return None


def download(name: str, files: Sequence[str] | None = None) -> Path:
    """The folder of a hub repository's commit, fetched if it is not in the local cache; its name is the commit's hash.

    Args:
        name: a hub name, with or without ``@revision``.
        files: names of all files that are needed; those of a checkpoint's parts if None.

    Raises:
        CheckpointError: the repository or the revision is neither on the hub nor in the cache.
    """
    from huggingface_hub.constants import HF_HUB_OFFLINE

    try:
        return _fetch(name, files)
    except (OSError, ValueError) as error:  # the hub's errors derive from these
        where = "the local cache (HF_HUB_OFFLINE is set)" if HF_HUB_OFFLINE else "the hub or the local cache"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{'@'.join(_pinned(name))} was not found in {where}: {reason}") from error


def bytes_to_download(name: str) -> int:
    """Bytes of weights that `download` would fetch; fetches the small files, whose indexes name the weights.

    Raises:
        CheckpointError: the hub cannot be reached, or does not have the repository or the revision.
    """
    from huggingface_hub import snapshot_download

    repository, revision = _pinned(name)
    try:
        # A dry run asks the hub; the cache answers for a hub that cannot be reached otherwise.
        snapshot_download(repository, revision=revision, allow_patterns=SMALL_FILES, dry_run=True)
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=SMALL_FILES))
        weights = list(parts_to_fetch(folder))
        files = snapshot_download(repository, revision=folder.name, allow_patterns=weights, dry_run=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the hub does not find {repository}@{revision}: {error}") from error
    return sum(file.file_size for file in files if file.will_download)


def cached(name: str, files: Sequence[str] | None = None) -> Path | None:
    """The folder of a hub repository's commit in the local cache, or None; asks no network.

    The hub's client stores the list of a commit's files before the first of them. Each file gets its name in the folder
    when all its bytes are there. So an interrupted download is None. Without a list, as older clients leave the cache,
    any folder counts.
    """
    try:
        return _fetch(name, files, local_files_only=True)
    except (OSError, ValueError):
        return None


def _pinned(name: str) -> tuple[str, str]:
    """Repository and revision of a hub name; the revision is main if it names none."""
    repository, _, revision = name.partition("@")
    return repository, revision or "main"


def _fetch(name: str, files: Sequence[str] | None, **options: Any) -> Path:
    from huggingface_hub import snapshot_download

    repository, revision = _pinned(name)
    if files is not None:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(files), **options))
    folder = Path(snapshot_download(repository, revision=revision, allow_patterns=SMALL_FILES, **options))
    weights = list(parts_to_fetch(folder))
    return Path(snapshot_download(repository, revision=folder.name, allow_patterns=weights, **options))
