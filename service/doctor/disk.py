"""Checks of the disk: space for the queue's files and for weights that are yet to be downloaded."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile

from bestofn.judge.names import ADDRESSES
from bestofn.service.core.settings import Settings
from bestofn.service.doctor.checkpoints import image_checkers, judges_of, locate
from bestofn.service.doctor.findings import GIB, Finding, State
from bestofn.service.doctor.published_sizes import published
from bestofn.service.host.packages import can_draw_here

ENOUGH, LITTLE = 10 * GIB, GIB


def disk(settings: Settings) -> Iterator[Finding]:
    """Space for the queue's files, where they are here, and for what is yet to be downloaded."""
    folder, trouble = _place(settings.data_dir)
    if settings.redis_url is not None:  # in a container that folder is small, or cannot be written to
        yield Finding("ok", "data", "the queue's files are with its server")
    elif trouble:
        yield Finding("fail", "data", f"{folder} is not writable", "set BESTOFN_DATA_DIR to a folder that is")
    else:
        free = shutil.disk_usage(folder).free
        state: State = "ok" if free >= ENOUGH else "warn" if free >= LITTLE else "fail"
        fix = "" if state == "ok" else "free some, or set BESTOFN_DATA_DIR to another disk"
        yield Finding(state, "data", f"{free / GIB:.1f} GiB free in {folder}", fix)
    if can_draw_here():
        yield from _hub(settings)


def _hub(settings: Settings) -> Iterator[Finding]:
    """The hub's cache, and whether what is missing would fit there."""
    from huggingface_hub import constants

    places = [locate(settings.model), *judges_of(settings), *image_checkers(settings)]
    missing = [one for one in places if one.path is None and not one.broken and one.kind not in ADDRESSES]
    names = " and ".join(place.name for place in missing)
    sizes = [sizes.download for place in missing if (sizes := published(place.name)) is not None]
    cache = Path(constants.HF_HUB_CACHE)
    folder, trouble = _place(cache)
    free = shutil.disk_usage(folder).free
    offline = constants.HF_HUB_OFFLINE
    room = f"cannot be written ({trouble})" if trouble else f"{free / GIB:.1f} GiB free"
    found = f"{cache}, {room}, {'offline (HF_HUB_OFFLINE is set)' if offline else 'online'}"
    if missing and offline:
        yield Finding("fail", "hub cache", f"{found}; {names} missing", "unset HF_HUB_OFFLINE to download, or copy it")
    elif missing and trouble:
        yield Finding("fail", "hub cache", f"{found}; {names} missing", "set HF_HOME to a folder that can be written")
    elif sum(sizes) > free:
        fix = "free some, or set HF_HOME to another disk"
        yield Finding("fail", "hub cache", f"{found}, {sum(sizes) / GIB:.1f} are needed to download", fix)
    else:
        yield Finding("ok", "hub cache", f"{found}; nothing is missing" if trouble else found)


def _place(folder: Path) -> tuple[Path, str | None]:
    """The part of a path that is there, and why no file or folder can be made in it; None: one can."""
    found = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        TemporaryFile(dir=found).close()
    except OSError as error:
        return found, f"{found}: {error.strerror}"
    return found, None
