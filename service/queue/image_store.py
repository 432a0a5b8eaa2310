"""Storage of images, winners' and sent ones: in the queue's server, or as files in a folder of API and workers."""

import asyncio
import errno
import re
import secrets
import shutil
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis.exceptions import OutOfMemoryError, ResponseError

from bestofn.service.core.errors import ImageNotFound, JobUnreadable, Unavailable
from bestofn.service.core.jobs import ACTIVE, Heat
from bestofn.service.core.settings import Settings
from bestofn.service.queue.admission import BUSY_RETRY_SECONDS
from bestofn.service.queue.keys import Keys, opaque

if TYPE_CHECKING:
    from bestofn.service.queue.job_queue import Queue

LEAST_FREE = 64 * 2**20  # free bytes below which the folder counts as full
LEAST_AGE = 600.0  # minimum age in seconds of a job's files before a sweep deletes them
STAGED_MS = 600_000  # staged images of a heat that was never completed go after this
MARK_SECONDS = 86_400  # a folder is the queue's for a day longer than its images are kept
SENT_BY = "api"  # writer of the files of sent images, in an images folder
_ACTIVE = {status.encode() for status in ACTIVE}
_FULL = (errno.ENOSPC, errno.EDQUOT)
_OTHER_FOLDER = "it does not have the images of earlier jobs: mount its disk, or copy the files of the earlier folder"
_REFERENCE = re.compile(rb"file:([0-9a-f]{12})")  # no image begins like this


class ImageNotStored(Exception):
    """Images could not be written. `full`: the disk has no room."""

    def __init__(self, error: OSError) -> None:
        self.full = error.errno in _FULL
        reason = "is full" if self.full else "cannot be written"
        super().__init__(f"the images folder {reason} ({error.strerror})")


class ImageStore:
    """Winner images. Redis holds the bytes, or a reference to the file FOLDER/queue-NAMESPACE/JOB/CANDIDATE-SENT_BY.

    A file is written before its reference and never changed. A reference holds no path. The first image leaves a mark
    in the folder, and the server keeps its name. A folder without that mark is another one, or its disk is not mounted.

    Attributes:
        apart: whether new images are files outside the queue's server.
    """

    def __init__(self, redis: Any, keys: Keys, settings: Settings) -> None:
        self._redis = redis
        self._key = keys("images_folder")
        self._mark_seconds = settings.result_ttl_seconds + MARK_SECONDS
        root = settings.images_dir
        self._folder = None if root is None else root / f"queue-{settings.namespace}"
        self.apart = self._folder is not None

    async def put(self, job: str, writer: str, images: Mapping[int, bytes]) -> dict[int, bytes]:
        """Store images of a job by candidate. A repeated call by the same writer changes nothing.

        Returns:
            The value that the queue's server holds for each image.

        Raises:
            ImageNotStored: the files cannot be written.
        """
        if self._folder is None:
            return dict(images)
        own = opaque(writer)[:12]
        try:
            await self._mark(self._folder)
            await asyncio.to_thread(_write, self._folder / job, own, images)
        except OSError as error:
            raise ImageNotStored(error) from error
        return dict.fromkeys(images, f"file:{own}".encode())

    async def get(self, job: str, candidate: int, held: bytes) -> bytes:
        """The image for the value `held` of the queue's server. Raises ImageNotFound if its file cannot be read."""
        reference = _REFERENCE.fullmatch(held)
        if reference is None:
            return held
        if self._folder is None:
            raise ImageNotFound(f"job {job} has its images in a folder; set BESTOFN_IMAGES_DIR to it")
        try:
            return await asyncio.to_thread((self._folder / job / _name(candidate, reference[1].decode())).read_bytes)
        except OSError as error:
            raise ImageNotFound(f"the image of candidate {candidate} of job {job} cannot be read") from error

    async def _mark(self, folder: Path) -> None:
        """Let this folder be the queue's, if none is. Raises OSError if another one is."""
        mark = await self._redis.get(self._key)
        if mark is None:
            mine = await asyncio.to_thread(_make_mark, folder)
            await self._redis.set(self._key, mine, nx=True)
            mark = await self._redis.get(self._key)
        await self._redis.expire(self._key, self._mark_seconds)
        await asyncio.to_thread(_check_mark, folder, mark)

    async def trouble(self) -> str | None:
        """Reason why no more images can be stored; None if there is room."""
        if self._folder is None:
            return None
        root = self._folder.parent
        mark = await self._redis.get(self._key)
        try:
            free = (await asyncio.to_thread(shutil.disk_usage, root)).free
            await asyncio.to_thread(_check_mark, self._folder, mark)
        except OSError as error:
            return f"the images folder {root} cannot be used ({error.strerror})"
        if free < LEAST_FREE:
            return f"the images folder {root} is full ({free >> 20} MiB are free, {LEAST_FREE >> 20} are needed)"
        return None

    async def jobs(self, age: float = LEAST_AGE) -> list[str]:
        """Jobs with files in the folder, all older than `age` seconds by the clock of its file system."""
        return [] if self._folder is None else await asyncio.to_thread(_older, self._folder, age)

    async def forget(self, jobs: Iterable[str]) -> None:
        """Delete all files of these jobs."""
        if self._folder is not None:
            for job in jobs:
                await asyncio.to_thread(shutil.rmtree, self._folder / job, ignore_errors=True)


async def stage(queue: "Queue", key: str, images: Mapping[int, bytes]) -> bool:
    """Store images in the server before the script that accepts their job or completes their heat.

    A script would block the server meanwhile. They replace those of an earlier attempt.

    Args:
        queue: the queue.
        key: key of the hash.
        images: bytes, or references to files, by candidate.

    Returns:
        False: the server's memory is full.
    """
    try:
        size = sum(map(len, images.values()))
        async with queue.transfer(size) as redis, redis.pipeline(transaction=False) as pipe:
            pipe.unlink(key)
            pipe.hset(key, mapping={str(index): image for index, image in images.items()})
            pipe.pexpire(key, STAGED_MS)
            await pipe.execute()
    except ResponseError as error:  # a pipeline's, with the command put in front
        if not (isinstance(error, OutOfMemoryError) or "OOM" in str(error)):
            raise
        return False
    return True


async def submit_staged(queue: "Queue", job: str, sent: Sequence[bytes], submit: Callable[..., Awaitable[Any]]) -> Any:
    """Run the submission script, and store a job's images once it would accept the job.

    Args:
        queue: takes the job.
        job: its id.
        sent: files of its images by candidate.
        submit: runs the script with the key `staged`.

    Returns:
        The script's reply.

    Raises:
        Unavailable: the images cannot be stored.
    """
    staged = queue.keys("staged", job, "sent", SENT_BY)
    reply = await submit(staged=staged)
    if reply != [b"stage"]:
        return reply
    try:
        images = await queue.images.put(job, SENT_BY, dict(enumerate(sent)))
    except ImageNotStored as error:
        raise Unavailable(f"{error}; try again later", retry_after=BUSY_RETRY_SECONDS) from error
    if not await stage(queue, staged, images):
        raise Unavailable("the queue's memory is full; try again later", retry_after=BUSY_RETRY_SECONDS)
    reply = await submit(staged=staged)
    await queue.redis.unlink(staged)  # the job was refused after all; else the key is renamed
    return reply


async def with_images(queue: "Queue", heat: Heat) -> Heat | None:
    """The heat with the sent images of its candidates; None if its job has ended.

    Raises:
        JobUnreadable: an image cannot be read.
    """
    job = heat.job.id
    if not heat.job.sent or heat.is_finals:
        return heat
    size = sum(heat.job.sent[candidate].size for candidate in heat.candidates)
    async with queue.transfer(size) as redis:
        held = await redis.hmget(queue.keys("sent", job), list(heat.candidates))
    images: dict[int, bytes] = {}
    if None in held and await queue.redis.hget(queue.keys("job", job), "status") not in _ACTIVE:
        return None
    for candidate, image in zip(heat.candidates, held, strict=True):
        if image is None:
            raise JobUnreadable(f"the sent image of candidate {candidate} is gone")
        try:
            images[candidate] = await queue.images.get(job, candidate, image)
        except ImageNotFound as error:
            raise JobUnreadable(error.detail) from error
    return replace(heat, images=images)


def _make_mark(folder: Path) -> str:
    """Name of the folder's mark, which is made if there is none."""
    folder.mkdir(exist_ok=True)  # not its parent: that may be a disk that is not mounted
    mark = next(folder.glob(".mark-*"), folder / f".mark-{secrets.token_hex(8)}")
    mark.touch()
    return mark.name


def _older(folder: Path, age: float) -> list[str]:
    mark = next(folder.glob(".mark-*"), None)
    if mark is None:
        return []
    mark.write_bytes(b"")  # this host's clock may be hours ahead of a file server's
    moment = mark.stat().st_mtime - age
    return [one.name for one in folder.glob("[!.]*") if one.stat().st_mtime < moment]


def _check_mark(folder: Path, mark: bytes | None) -> None:
    if mark is not None and not (folder / mark.decode()).exists():
        raise OSError(errno.ESTALE, _OTHER_FOLDER)


def _write(folder: Path, writer: str, images: Mapping[int, bytes]) -> None:
    if not images:
        return
    folder.mkdir(exist_ok=True)
    for candidate, image in images.items():
        file = folder / _name(candidate, writer)
        part = file.with_suffix(".part")
        try:
            part.write_bytes(image)
            part.replace(file)
        except OSError:
            part.unlink(missing_ok=True)
            raise


def _name(candidate: int, writer: str) -> str:
    return f"{candidate}-{writer}"
