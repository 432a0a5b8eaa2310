"""The queue for the API: submit, read, cancel and follow jobs, and list the workers."""

import asyncio
import json
import math
import secrets
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

import structlog
from redis.exceptions import OutOfMemoryError, ResponseError

from bestofn.service.core.errors import ImageNotFound, JobGone, JobNotFound, Unavailable
from bestofn.service.core.jobs import JobSpec, JobStatus
from bestofn.service.core.scheduling import Backlog, wait_seconds
from bestofn.service.core.settings import Settings
from bestofn.service.core.workers import WorkerInfo
from bestofn.service.queue.admission import (
    BUSY_RETRY_SECONDS,
    KEPT_SHARE,
    OWN_SHARE,
    check_size,
    image_bytes,
    job_bytes,
    nearly_full,
    refusal,
)
from bestofn.service.queue.codec import JobRecord, QueuePosition, read_spec, read_workers, without_prompt
from bestofn.service.queue.connection import Transfer, check_connection, close_redis, connect_redis
from bestofn.service.queue.connection_errors import AWAY, away, why
from bestofn.service.queue.embedded_server import find_redis
from bestofn.service.queue.image_store import ImageStore, submit_staged
from bestofn.service.queue.job_events import EventFeed
from bestofn.service.queue.job_reader import JobReader
from bestofn.service.queue.keys import PRIORITIES, Keys, opaque, pair_id
from bestofn.service.queue.scripts import Scripts

log = structlog.get_logger()


class Queue:
    """The queue's server, over two connection pools. Every method may raise redis' ConnectionError or TimeoutError."""

    def __init__(self, address: str, settings: Settings) -> None:
        """Make the clients; `connect` also checks the server."""
        self.redis: Any = connect_redis(address)  # its annotations differ from version to version
        self.transfer = Transfer(address)
        self.settings = settings
        self.keys = Keys(settings.namespace)
        self.scripts = Scripts(self.redis, self.keys)
        self.images = ImageStore(self.redis, self.keys, settings)
        self.feed = EventFeed(self.redis)
        self.reader = JobReader(self.scripts)

    @classmethod
    async def connect(cls, settings: Settings, *, may_be_away: bool = False) -> "Queue":
        """Connect to the server that `find_redis` names; with `may_be_away` also to one that does not answer yet.

        Raises:
            SetupError: no server is known, or it is too old, or it may evict keys.
        """
        queue = cls(find_redis(settings), settings)
        try:
            await check_connection(queue.redis)
        except BaseException as error:
            if may_be_away and isinstance(error, AWAY):
                log.warning("the queue cannot be reached yet", error=str(error))
                return queue
            await queue.aclose()
            raise
        return queue

    async def drop_connections(self) -> None:
        """Close idle connections: the next call connects again, to the server that has the address by then."""
        for client in (self.redis, self.transfer.redis):
            await client.connection_pool.disconnect(inuse_connections=False)

    async def aclose(self) -> None:
        """Close the connections."""
        await self.feed.aclose()
        self.reader.close()
        await asyncio.gather(*map(close_redis, (self.redis, self.transfer.redis)))

    async def refuses(self, *, jobs: bool = True) -> str | None:
        """Why running jobs make no progress or, with `jobs`, no job is accepted; None: all is well. Writes nothing."""
        try:
            full = await self.scripts("probe")
        except ResponseError as error:
            if not away(error):
                raise
            return why(error)
        return nearly_full(*full[1:]) if full and jobs else await self.images.trouble()

    async def submit(
        self,
        spec: JobSpec,
        *,
        idempotency_key: str | None = None,
        fingerprint: str = "",
        cost: float,
        caller: str = "",
        traceparent: str = "",
        sent: Sequence[bytes] = (),
        webhook: str = "",
    ) -> tuple[str, bool]:
        """Accept a job or refuse it.

        Args:
            spec: the job.
            idempotency_key: key from the client; a second call with it returns the first call's job.
            fingerprint: hash of the client's request, which separates a repetition from a mistake.
            cost: estimated TFLOP of the job.
            caller: name of the API key, for its limits and its jobs; "": none.
            traceparent: trace context of the request.
            sent: files of the images that `spec.sent` describes.
            webhook: address that is called at the job's end; "": none.

        Returns:
            The job's id and whether this call made it.

        Raises:
            IdempotencyMismatch: the key was used with another fingerprint.
            InvalidRequest: the job alone exceeds a limit for images, candidates or work.
            Overloaded: a limit for waiting candidates, work or image bytes is reached.
            Unavailable: no worker ever announced this pair, or memory or the images folder is nearly full.
        """
        settings = self.settings
        trouble = await self.images.trouble()
        if trouble is not None:
            raise Unavailable(f"{trouble}; try again later", retry_after=BUSY_RETRY_SECONDS)
        images = image_bytes(spec, apart=self.images.apart)
        check_size(spec, cost, images, settings, caller)
        text = spec.model_dump_json().encode()
        submit = partial(
            self.scripts,
            "submit",
            job=spec.id,
            spec=text,
            pair=pair_id(spec.schema_version, *spec.revisions),
            priority=spec.priority,
            num_samples=spec.num_samples,
            heat_size=spec.heat_size,
            first_heats=json.dumps(spec.schedule.first_heats),
            heats=spec.schedule.num_heats,
            may_stop=int(spec.stop is not None),
            total_steps=spec.total_steps,
            gflop=round(1000 * cost),
            image_bytes=images,
            job_bytes=job_bytes(spec, text),
            ttl=1000 * settings.result_ttl_seconds,
            idempotency=opaque(idempotency_key) if idempotency_key is not None else "",
            fingerprint=fingerprint,
            traceparent=traceparent,
            webhook=webhook,
            deadline=math.ceil(1000 * (spec.deadline_seconds or 0)),
            caller=caller,
            max_candidates=settings.max_queued_candidates,
            max_candidates_per_caller=settings.max_queued_candidates_per_key or 0,
            max_gflop=round(1000 * (settings.max_queued_tflops or 0)),
            max_image_bytes=settings.image_budget_bytes,
            own_share=OWN_SHARE,
            kept_share=KEPT_SHARE,
        )
        try:
            reply = await (submit_staged(self, spec.id, sent, submit) if sent else submit(staged=""))
        except OutOfMemoryError as error:
            raise Unavailable("the queue's memory is full; try again later", retry_after=BUSY_RETRY_SECONDS) from error
        match reply:
            case [b"created" | b"replay", job]:  # a replay of its own, if the reply to the first try was lost
                return job.decode(), job.decode() == spec.id
        speed = sum(info.tflops_per_second or 0.0 for info in await self.workers())
        raise refusal(reply, spec, settings, speed)

    async def owner(self, job: str) -> str | None:
        """The `caller` of a job, known until a day after its results expire; None: there is no such job."""
        async with self.redis.pipeline(transaction=False) as pipe:
            pipe.hget(self.keys("job", job), "caller")
            pipe.get(self.keys("tombstone", job))
            caller, gone = await pipe.execute()
        if caller is None and gone is not None:
            caller = gone.partition(b" ")[2]
        return None if caller is None else caller.decode()

    async def spec(self, job: str) -> JobSpec:
        """The specification of a job. Raises JobNotFound, JobGone, JobUnreadable."""
        spec = await self.redis.hget(self.keys("job", job), "spec")
        if spec is None and not await self.redis.exists(self.keys("job", job)):
            await self.missing(job)
        return read_spec(spec)

    async def record(self, job: str) -> JobRecord:
        """The record of a job, without images. Raises JobNotFound, JobGone, JobUnreadable."""
        record = await self.reader.record(job)
        if record is None:
            await self.missing(job)
        if record.status is JobStatus.QUEUED:
            position = await self.position(record.spec)
            record.progress.position = position.position
            record.progress.estimated_wait_seconds = position.estimated_wait_seconds
        return record

    async def position(self, spec: JobSpec) -> QueuePosition:
        """Queue position of a waiting job and the time until its start; empty for a job that has started."""
        pair = pair_id(spec.schema_version, *spec.revisions)
        async with self.redis.pipeline(transaction=False) as pipe:
            pipe.hmget(self.keys("job", spec.id), ["status", "next", "caller"])
            pipe.zrange(self.keys("ring", pair, spec.priority), 0, -1)
            for priority in PRIORITIES[: PRIORITIES.index(spec.priority) + 1]:
                pipe.get(self.keys("dispatched", pair, priority))
            (status, own, caller), callers, *counts = await pipe.execute()
        if status != JobStatus.QUEUED.encode():
            return QueuePosition()
        before = 0
        if caller in callers:  # else its heats are dispatched, and a worker has not started them
            async with self.redis.pipeline(transaction=False) as pipe:
                waiting = [self.keys("jobs", pair, spec.priority, name.decode()) for name in callers]
                mine = callers.index(caller)
                pipe.lpos(waiting[mine], spec.id)
                for key in waiting:
                    pipe.llen(key)
                place, *lengths = await pipe.execute()
            # One heat of each job of its caller before this one; in the same time, about as many of each other caller.
            turns = int(place or 0)
            before = turns + sum(min(n, turns + (i < mine)) for i, n in enumerate(lengths) if i != mine)
        workers = [info for info in await self.workers() if info.revisions == spec.revisions]
        # What is dispatched already goes first, its own heats aside.
        dispatched = sum(int(count or 0) for count in counts) - spec.schedule.first(int(own))
        ahead = max(0, dispatched) + before * spec.heat_size
        return QueuePosition(before + 1, wait_seconds(ahead, await self.backlog(), workers))

    async def image(self, job: str, candidate: int) -> bytes:
        """File bytes of the image of one leader. Raises JobNotFound, JobGone, ImageNotFound."""
        heat = await self.redis.hget(self.keys("winner_images", job), str(candidate))
        image = None if heat is None else await self.transfer.read(self.keys("images", job, int(heat)), candidate)
        if image is None:
            await self._no_image(job, f"image of candidate {candidate}")
        return await self.images.get(job, candidate, image)

    async def thumbnail(self, job: str, candidate: int) -> bytes:
        """Thumbnail (WebP) of one candidate. Raises JobNotFound, JobGone, ImageNotFound."""
        image = await self.redis.hget(self.keys("thumbnails", job), str(candidate))
        if image is None:
            await self._no_image(job, f"thumbnail of candidate {candidate}")
        return bytes(image)

    async def cancel(self, job: str) -> JobStatus:
        """Cancel a job unless it has ended; returns its status. Its prompt, candidates and images are forgotten.

        Raises JobNotFound or JobGone if there is no such job.
        """
        text = await self.redis.hget(self.keys("job", job), "spec")
        status = await self.scripts("cancel", job=job, spec=without_prompt(text or b""))
        if status is None:
            await self.missing(job)
        ended = JobStatus(status.decode())
        await self.images.forget([job] if ended is JobStatus.CANCELED else [])  # a heat on its way: later, by a sweep
        return ended

    async def expire_jobs(self) -> None:
        """End the jobs whose deadline has passed. Each heartbeat does it, and API processes four times a second."""
        await self.scripts("expire")

    async def workers(self) -> list[WorkerInfo]:
        """The warm workers whose announcements can be read."""
        async with self.redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.hkeys(self.keys("pairs"))
            (seconds, micros), pairs = await pipe.execute()
        async with self.redis.pipeline(transaction=False) as pipe:
            for pair in pairs:
                pipe.zrangebyscore(self.keys("workers", pair.decode()), f"({1000 * seconds + micros // 1000}", "+inf")
                pipe.hgetall(self.keys("infos", pair.decode()))
            found = await pipe.execute()
        pairs_of_workers = zip(found[::2], found[1::2], strict=True)
        return read_workers(texts[worker] for live, texts in pairs_of_workers for worker in live if worker in texts)

    async def announced(self) -> list[WorkerInfo]:
        """The last announced worker of every pair, to check requests while no worker is warm."""
        return read_workers(await self.redis.hvals(self.keys("pairs")))

    async def tokenizer(self, sha256: str) -> bytes:
        """The tokenizer.json with this hash. Raises Unavailable if no worker has stored it yet."""
        text = await self.transfer.read(self.keys("tokenizer", sha256))
        if text is None:
            raise Unavailable("no worker has stored its tokenizer yet; try again", retry_after=BUSY_RETRY_SECONDS)
        return text

    async def signing_key(self) -> tuple[bytes, int]:
        """The secret that signs addresses of images, with which all can be read, and the server's time in seconds."""
        key, made = self.keys("signing_key"), secrets.token_hex(32).encode()
        async with self.redis.pipeline(transaction=False) as pipe:
            known, (now, _) = await pipe.get(key).time().execute()
        return bytes(known or await self.redis.set(key, made, nx=True, get=True) or made), now

    async def backlog(self) -> Backlog:
        """Work that waits or runs."""
        async with self.redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(self.keys("backlog"))
            pipe.hget(self.keys("reserved"), "total")
            load, reserved = await pipe.execute()
        jobs, candidates, gflop = (int(load.get(name, 0)) for name in (b"jobs", b"candidates", b"gflop"))
        return Backlog(jobs, candidates, gflop / 1000, int(reserved or 0))

    async def _no_image(self, job: str, what: str) -> NoReturn:
        if not await self.redis.exists(self.keys("job", job)):
            await self.missing(job)
        raise ImageNotFound(f"job {job} has no {what}")

    async def missing(self, job: str) -> NoReturn:
        """Raise the error for a job that has no record: JobGone if it has expired, else JobNotFound."""
        gone = await self.redis.get(self.keys("tombstone", job))
        if gone is None:
            raise JobNotFound(f"there is no job {job[:64]}")
        raise JobGone(
            f"job {job} ended ({gone.decode().partition(' ')[0]}) longer ago than results are kept, "
            f"{self.settings.result_ttl_seconds} s"
        )
