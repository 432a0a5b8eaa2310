"""The queue as the API sees it: submit, look, cancel, follow, and the cards of the workers."""

import json
import math
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import OutOfMemoryError, ResponseError

from bestofn.service.core.errors import InvalidRequest, JobGone, JobNotFound, NotThere, SetupError, Unavailable
from bestofn.service.core.jobs import ACTIVE, THUMBNAILS_KEPT, ImageFormat, JobSpec, JobStatus
from bestofn.service.core.scheduling import Backlog, wait_seconds
from bestofn.service.core.schemas import FinalsProgress, JobProgress
from bestofn.service.core.settings import Settings
from bestofn.service.core.workers import WorkerInfo
from bestofn.service.queue.admission import BUSY_RETRY_SECONDS, nearly_full, refusal
from bestofn.service.queue.codec import ENDINGS, Event, JobRecord, QueuePosition, best, unpack_finals, unpack_heat
from bestofn.service.queue.connection_errors import away, why
from bestofn.service.queue.embedded_server import find_redis
from bestofn.service.queue.image_store import Pictures
from bestofn.service.queue.keys import PRIORITIES, Keys, opaque, pair_id
from bestofn.service.queue.scripts import Scripts

CONNECT_SECONDS = 2.0
REPLY_SECONDS = 10.0  # longest wait for a reply, above the longest blocking read
BLOCK_SECONDS = 5.0
OLDEST_SERVER = (7, 0)

# Most bytes that a picture takes, a pixel: what admission counts until the pictures are there.
_BYTES_A_PIXEL: Mapping[ImageFormat, float] = {"png": 3.1, "webp": 1.5, "jpeg": 1.5}
_BYTES_A_THUMBNAIL = 8 * 1024
_BYTES_A_STORY, _BYTES_A_CHARACTER = 2048, 16  # a prompt stands in a file as UTF-8, and escaped in its story

log = structlog.get_logger()


def connect_redis(url: str) -> Redis:
    """A client of the server at `url` that tries a call twice when the connection breaks, and no more."""
    return Redis.from_url(
        url,
        socket_connect_timeout=CONNECT_SECONDS,
        socket_timeout=REPLY_SECONDS,
        retry=Retry(ConstantBackoff(0.05), 1),
        max_connections=4096,
        protocol=2,
    )


class Queue:
    """One connection pool to the queue's server. Every method may raise redis' ConnectionError or TimeoutError."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        """Wraps a client that the queue then owns; `connect` also checks the server."""
        self.redis: Any = redis  # its annotations differ from version to version, and cover every protocol at once
        self.settings = settings
        self.keys = Keys(settings.namespace)
        self.scripts = Scripts(redis, self.keys)
        self.pictures = Pictures(settings)

    @classmethod
    async def connect(cls, settings: Settings) -> "Queue":
        """Connects to the server that `find_redis` names.

        Raises:
            SetupError: no server is named or known, or it is too old, or it may evict keys.
        """
        queue = cls(connect_redis(find_redis(settings)), settings)
        try:
            await queue.check()
        except BaseException:
            await queue.aclose()
            raise
        return queue

    async def check(self) -> None:
        """Raises SetupError if the server cannot keep a queue."""
        check_server(await self.redis.info())

    async def aclose(self) -> None:
        """Closes the connections."""
        await self.redis.aclose()

    async def refuses(self, *, jobs: bool = True) -> str | None:
        """Why jobs stand still, or (`jobs`) no more are taken, in plain words; None if all is well.

        Asks without writing anything.
        """
        try:
            full = await self.scripts("probe")
        except ResponseError as error:
            if not away(error):
                raise
            return why(error)
        return nearly_full(*full[1:]) if full and jobs else await self.pictures.trouble()

    async def submit(
        self,
        spec: JobSpec,
        *,
        idempotency_key: str | None = None,
        fingerprint: str | None = None,
        cost: float,
        caller: str = "",
        traceparent: str = "",
    ) -> tuple[str, bool]:
        """Accepts a job, or refuses it at the door.

        Args:
            spec: the job; its heat size is chosen by the caller (`ring.heat_size`).
            idempotency_key: of the client; a second call with it returns the first call's job.
            fingerprint: of the client's request, to tell a repetition from a mistake.
            cost: estimated TFLOP of the whole job.
            caller: a name of whoever submits, for limits of each and walls between them; "": none.
            traceparent: the span of the request, which workers' spans go on from.

        Returns:
            The job's id and whether this call made it.

        Raises:
            IdempotencyMismatch: the key came before, with another fingerprint.
            InvalidRequest: its pictures alone are more than may stand.
            Overloaded: too many candidates or too much work wait, of all or of this caller, or too many bytes of
                images stand.
            Unavailable: no worker ever announced this pair, or the server's memory or the folder of pictures is
                nearly full.
        """
        settings = self.settings
        trouble = await self.pictures.trouble()
        if trouble is not None:
            raise Unavailable(f"{trouble}; try again later", retry_after=BUSY_RETRY_SECONDS)
        story_bytes = _BYTES_A_STORY + _BYTES_A_CHARACTER * len(spec.prompt + spec.negative_prompt)
        picture_bytes = int(spec.width * spec.height * _BYTES_A_PIXEL[spec.format] + story_bytes)
        image_bytes = 0 if self.pictures.apart else min(spec.num_images_kept, spec.num_samples) * picture_bytes
        if spec.thumbnails:
            image_bytes += min(spec.num_samples, THUMBNAILS_KEPT) * _BYTES_A_THUMBNAIL
        if image_bytes > settings.image_budget_bytes:
            raise InvalidRequest(
                f"its pictures may take up to {image_bytes:,} bytes, but this server keeps at most "
                f"{settings.image_budget_bytes:,} of all jobs; ask for fewer or smaller ones, or for webp or jpeg",
                field="top_k",
            )
        try:
            reply = await self.scripts(
                "submit",
                job=spec.id,
                spec=spec.model_dump_json(),
                pair=pair_id(*spec.revisions),
                priority=spec.priority,
                num_samples=spec.num_samples,
                heat_size=spec.heat_size,
                first_heats=json.dumps(spec.schedule.first_heats),
                heats=spec.schedule.num_heats,
                may_stop=int(spec.stop is not None),
                total_steps=spec.total_steps,
                gflop=round(1000 * cost),
                image_bytes=image_bytes,
                ttl=1000 * settings.result_ttl_seconds,
                idempotency=opaque(idempotency_key) if idempotency_key is not None else "",
                fingerprint=fingerprint or "",
                traceparent=traceparent,
                deadline=math.ceil(1000 * (spec.deadline_seconds or 0)),
                caller=caller,
                max_candidates=settings.max_queued_candidates,
                max_candidates_per_caller=settings.max_queued_candidates_per_key or 0,
                max_gflop=round(1000 * (settings.max_queued_tflops or 0)),
                max_image_bytes=settings.image_budget_bytes,
            )
        except OutOfMemoryError as error:
            raise Unavailable("the queue's memory is full; try again later", retry_after=BUSY_RETRY_SECONDS) from error
        match reply:
            case [b"created" | b"replay", job]:  # a replay of its own, if the reply to the first try was lost
                return job.decode(), job.decode() == spec.id
        speed = sum(info.tflops_per_second or 0.0 for info in await self.workers())
        raise refusal(reply, spec, settings, speed)

    async def owner(self, job: str) -> str | None:
        """The `caller` who submitted a job, known for a day after its end; None: there is no such job."""
        async with self.redis.pipeline(transaction=False) as pipe:
            pipe.hget(self.keys("job", job), "caller")
            pipe.get(self.keys("tombstone", job))
            caller, gone = await pipe.execute()
        if caller is None and gone is not None:
            caller = gone.partition(b" ")[2]
        return None if caller is None else caller.decode()

    async def spec(self, job: str) -> JobSpec:
        """A job's specification. Raises JobNotFound, JobGone."""
        spec = await self.redis.hget(self.keys("job", job), "spec")
        if spec is None:
            await self._missing(job)
        return JobSpec.model_validate_json(spec)

    async def record(self, job: str) -> JobRecord:
        """All that is known of a job, without images. Raises JobNotFound, JobGone."""
        fields, heats = (
            dict(zip(flat[::2], flat[1::2], strict=True)) for flat in await self.scripts("record", job=job)
        )
        if not fields:
            await self._missing(job)
        spec = JobSpec.model_validate_json(fields[b"spec"])
        status = JobStatus(fields[b"status"].decode())
        finals = heats.pop(b"%d" % spec.schedule.num_heats, None)
        outcomes = tuple(unpack_heat(spec, index, heats[b"%d" % index]) for index in sorted(map(int, heats)))
        meeting = fields.get(b"finals_state") if status is JobStatus.RUNNING else None
        standing = await self.standing(spec) if status is JobStatus.QUEUED else QueuePosition()
        return JobRecord(
            spec,
            status,
            fields[b"error"].decode() if b"error" in fields else None,
            fields[b"stopped"].decode() if b"stopped" in fields else None,
            outcomes,
            JobProgress(
                judged=int(fields[b"judged"]),
                num_samples=spec.num_samples,
                steps=int(fields[b"steps"]),
                total_steps=int(fields[b"total_steps"]),
                transformer_forwards=int(fields[b"forwards"]),
                best=best(spec, outcomes),
                position=standing.position,
                estimated_wait_seconds=standing.estimated_wait_seconds,
                finals=None if meeting is None else FinalsProgress.model_validate_json(meeting),
            ),
            _seconds(fields[b"created"]),
            _seconds(fields[b"started"]) if b"started" in fields else None,
            _seconds(fields[b"ended"]) if b"ended" in fields else None,
            frozenset(
                candidate.index
                for outcome in outcomes
                for candidate in outcome.candidates
                if spec.has_thumbnail(candidate.index)
            ),
            int(fields.get(b"discarded", 0)),
            None if finals is None else unpack_finals(finals),
        )

    async def standing(self, spec: JobSpec) -> QueuePosition:
        """Where a job stands that waits: its place, and how long until it starts; nothing for one that has started."""
        pair = pair_id(*spec.revisions)
        async with self.redis.pipeline(transaction=False) as pipe:
            pipe.lpos(self.keys("ring", pair, spec.priority), spec.id)
            pipe.hmget(self.keys("job", spec.id), ["status", "next"])
            for priority in PRIORITIES[: PRIORITIES.index(spec.priority) + 1]:
                pipe.get(self.keys("dispatched", pair, priority))
            place, (status, own), *dealt = await pipe.execute()
        if status != JobStatus.QUEUED.encode():
            return QueuePosition()
        workers = [info for info in await self.workers() if info.revisions == spec.revisions]
        # One heat of each job before this one in the ring, and what is dealt already, its own heats aside.
        others = sum(int(count or 0) for count in dealt) - spec.schedule.first(int(own))
        ahead = max(0, others) + int(place or 0) * spec.heat_size
        return QueuePosition(int(place or 0) + 1, wait_seconds(ahead, await self.backlog(), workers))

    async def image(self, job: str, candidate: int) -> bytes:
        """The picture of one of the job's leaders, as a file's bytes. Raises JobNotFound, JobGone, NotThere."""
        heat = await self.redis.hget(self.keys("winner_images", job), str(candidate))
        if heat is None and not await self.redis.exists(self.keys("job", job)):
            await self._missing(job)
        images = self.keys("images", job, int(heat or 0))
        picture = await self.redis.hget(images, str(candidate)) if heat is not None else None
        if picture is None:
            raise NotThere(f"job {job} has no picture of candidate {candidate}")
        return await self.pictures.get(job, candidate, picture)

    async def sweep(self) -> None:
        """Deletes the pictures in the folder whose jobs the queue has forgotten."""
        jobs = await self.pictures.jobs()
        async with self.redis.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.exists(self.keys("job", job))
            known = await pipe.execute()
        await self.pictures.forget(job for job, there in zip(jobs, known, strict=True) if not there)

    async def thumbnail(self, job: str, candidate: int) -> bytes:
        """A small WebP of one candidate, of a job that asked. Raises JobNotFound, JobGone, NotThere."""
        picture = await self.redis.hget(self.keys("thumbnails", job), str(candidate))
        if picture is None:
            if not await self.redis.exists(self.keys("job", job)):
                await self._missing(job)
            raise NotThere(f"job {job} has no thumbnail of candidate {candidate}")
        return bytes(picture)

    async def cancel(self, job: str) -> JobStatus:
        """Cancels a job unless it has ended; returns its status. Raises JobNotFound, JobGone."""
        status = await self.scripts("cancel", job=job)
        if status is None:
            await self._missing(job)
        return JobStatus(status.decode())

    async def events(self, job: str, after: str = "0") -> AsyncGenerator[Event, None]:
        """The job's events after the one with id `after`, as they come; ends after the job's last event.

        The stream is capped, so that a reader who comes late misses the oldest.

        Raises:
            JobNotFound, JobGone: there is no such job, at the start or while following it.
        """
        key = self.keys("events", job)
        block: int | None = None
        ended = False
        while True:
            reply = await self.redis.xread({key: after}, block=block, count=256)
            for entry, fields in reply[0][1] if reply else ():
                event = Event.read(entry, fields)
                yield event
                if event.type in ENDINGS:
                    return
                after = event.id
            if not reply:
                if ended:
                    return  # `after` was the last event
                status, deadline = await self.redis.hmget(self.keys("job", job), ["status", "deadline"])
                if status is None:
                    await self._missing(job)
                # A job that has ended may have done so since the read: then its last event is there now.
                ended = JobStatus(status.decode()) not in ACTIVE
                block = None if ended else await self._patience(deadline)

    async def expire_jobs(self) -> None:
        """End the jobs whose deadline has passed. Workers do it at every heartbeat, an API process twice a second."""
        await self.scripts("expire")

    async def _patience(self, deadline: bytes | None) -> int | None:
        """Milliseconds to wait for the next event of a job with this deadline; None: it has just been ended by it."""
        if deadline is None:
            return int(1000 * BLOCK_SECONDS)
        left = int(deadline) - await self._now()
        if left <= 0:
            await self.expire_jobs()
            return None
        return min(int(1000 * BLOCK_SECONDS), left + 1)

    async def _now(self) -> int:
        """The server's time in milliseconds."""
        seconds, micros = await self.redis.time()
        return int(1000 * seconds + micros // 1000)

    async def workers(self) -> list[WorkerInfo]:
        """The cards of the workers that are warm now."""
        async with self.redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.hkeys(self.keys("pairs"))
            (seconds, micros), pairs = await pipe.execute()
        async with self.redis.pipeline(transaction=False) as pipe:
            for pair in pairs:
                pipe.zrangebyscore(self.keys("workers", pair.decode()), f"({1000 * seconds + micros // 1000}", "+inf")
                pipe.hgetall(self.keys("infos", pair.decode()))
            found = await pipe.execute()
        return [
            WorkerInfo.model_validate_json(texts[worker])
            for live, texts in zip(found[::2], found[1::2], strict=True)
            for worker in live
            if worker in texts
        ]

    async def announced(self) -> list[WorkerInfo]:
        """The card last announced of every pair ever announced: what a request can be checked with meanwhile."""
        texts = await self.redis.hvals(self.keys("pairs"))
        return [WorkerInfo.model_validate_json(text) for text in texts]

    async def tokenizer(self, sha256: str) -> bytes:
        """The tokenizer.json that a model card names. Raises Unavailable: no worker has left it yet."""
        text = await self.redis.get(self.keys("tokenizer", sha256))
        if text is None:
            raise Unavailable("no worker has left its tokenizer yet; try again", retry_after=BUSY_RETRY_SECONDS)
        return bytes(text)

    async def backlog(self) -> Backlog:
        """How much work waits or runs."""
        async with self.redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(self.keys("backlog"))
            pipe.hget(self.keys("reserved"), "total")
            load, reserved = await pipe.execute()
        return Backlog(
            int(load.get(b"jobs", 0)),
            int(load.get(b"candidates", 0)),
            int(load.get(b"gflop", 0)) / 1000,
            int(reserved or 0),
        )

    async def _missing(self, job: str) -> None:
        gone = await self.redis.get(self.keys("tombstone", job))
        if gone is None:
            raise JobNotFound(f"there is no job {job[:64]}")
        raise JobGone(
            f"job {job} ended ({gone.decode().partition(' ')[0]}) longer ago than results are kept, "
            f"{self.settings.result_ttl_seconds} s"
        )


def check_server(info: Mapping[str, Any]) -> None:
    """Raises SetupError if a server that reports `info` is too old, or deletes keys when its memory is full."""
    valkey = info.get("server_name") == "valkey"
    version = str(info.get("valkey_version" if valkey else "redis_version", "0.0"))
    if not valkey and tuple(map(int, version.split(".")[:2])) < OLDEST_SERVER:
        raise SetupError(f"the queue needs Redis 7.0 or newer, or Valkey 8 or newer; this is Redis {version}")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        fix = "run `redis-cli config set maxmemory-policy noeviction`, or put it into the server's configuration"
        if int(info.get("maxmemory", 0)) > 0:
            raise SetupError(f"the queue's server would delete keys when its memory is full (policy {policy}); {fix}")
        log.warning("the queue's server would delete keys if it had a memory limit", policy=policy, fix=fix)


def _seconds(milliseconds: bytes) -> float:
    return int(milliseconds) / 1000
