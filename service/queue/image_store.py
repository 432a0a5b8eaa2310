"""Where winners' pictures are kept: in the queue's server, or as files in a folder that API and workers share."""

import asyncio
import errno
import re
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from bestofn.service.core.errors import NotThere
from bestofn.service.core.settings import Settings
from bestofn.service.queue.keys import opaque

LEAST_FREE = 64 * 2**20  # bytes; below this the folder counts as full
LEAST_AGE = 600.0  # seconds that a job's pictures stay, whatever the queue knows of the job
_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFERENCE = re.compile(rb"file:([0-9a-f]{12})")  # no picture begins like this


class NotKept(Exception):
    """Pictures could not be written; the text says why. `full`: for want of room."""

    def __init__(self, error: OSError) -> None:
        self.full = error.errno in _FULL
        reason = "is full" if self.full else "cannot be written"
        super().__init__(f"the folder of pictures {reason} ({error.strerror})")


class Pictures:
    """What the queue's server holds of a picture: the picture itself, or a reference to its file,
    FOLDER/queue-NAMESPACE/JOB/CANDIDATE-WRITER.

    A reference is stored after its file, which is never changed, and holds no path: those are made here.
    """

    def __init__(self, settings: Settings) -> None:
        self._root = settings.images_dir
        self._folder = None if self._root is None else self._root / f"queue-{settings.namespace}"

    @property
    def apart(self) -> bool:
        """Whether pictures that are put from now on take no room in the queue's server."""
        return self._folder is not None

    async def put(self, job: str, writer: str, pictures: Mapping[int, bytes]) -> dict[int, bytes]:
        """Keeps a job's pictures by candidate; returns what the queue's server has to hold of each.

        Repeated by the same writer, it is done once. Raises NotKept.
        """
        if self._folder is None:
            return dict(pictures)
        own = opaque(writer)[:12]
        try:
            await asyncio.to_thread(_write, self._folder / job, own, pictures)
        except OSError as error:
            raise NotKept(error) from error
        return dict.fromkeys(pictures, f"file:{own}".encode())

    async def get(self, job: str, candidate: int, held: bytes) -> bytes:
        """The picture for which the queue's server holds this. Raises NotThere: its file is gone, or not here."""
        reference = _REFERENCE.fullmatch(held)
        if reference is None:
            return held
        if self._folder is None:
            raise NotThere(f"job {job} has its pictures in a folder; set BESTOFN_IMAGES_DIR to it")
        try:
            return await asyncio.to_thread((self._folder / job / _name(candidate, reference[1].decode())).read_bytes)
        except OSError as error:
            raise NotThere(f"the picture of candidate {candidate} of job {job} cannot be read") from error

    async def trouble(self) -> str | None:
        """Why no more pictures should come, in plain words; None if there is room."""
        if self._root is None:
            return None
        try:
            free = (await asyncio.to_thread(shutil.disk_usage, self._root)).free
        except OSError as error:
            return f"the folder of pictures cannot be used ({error.strerror})"
        if free < LEAST_FREE:
            return f"the folder of pictures is full ({free >> 20} MiB are free, {LEAST_FREE >> 20} are needed)"
        return None

    async def jobs(self, age: float = LEAST_AGE) -> list[str]:
        """Those with pictures in the folder, none of them put within so many seconds."""
        if self._folder is None or not self._folder.is_dir():
            return []
        return await asyncio.to_thread(_older, self._folder, time.time() - age)

    async def forget(self, jobs: Iterable[str]) -> None:
        """Deletes all pictures of these jobs."""
        if self._folder is not None:
            for job in jobs:
                await asyncio.to_thread(shutil.rmtree, self._folder / job, ignore_errors=True)


def _write(folder: Path, writer: str, pictures: Mapping[int, bytes]) -> None:
    if not pictures:
        return
    folder.parent.mkdir(exist_ok=True)  # not its parent: that may be a disk that is not mounted
    folder.mkdir(exist_ok=True)
    for candidate, picture in pictures.items():
        file = folder / _name(candidate, writer)
        part = file.with_suffix(".part")
        try:
            part.write_bytes(picture)
            part.replace(file)
        except OSError:
            part.unlink(missing_ok=True)
            raise


def _name(candidate: int, writer: str) -> str:
    return f"{candidate}-{writer}"


def _older(folder: Path, moment: float) -> list[str]:
    return [one.name for one in folder.iterdir() if one.stat().st_mtime < moment]
