"""Queue statistics for operators: backlog, workers, the server's memory, and how jobs have ended."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from bestofn.judge.verdict import Verdict
from bestofn.service.core.errors import JobUnreadable
from bestofn.service.core.jobs import JobStatus, Priority
from bestofn.service.core.scheduling import Backlog, wait_seconds
from bestofn.service.core.schemas import ServerOut
from bestofn.service.core.settings import Settings
from bestofn.service.core.workers import WorkerInfo
from bestofn.service.queue.admission import KEPT_SHARE, own_limit
from bestofn.service.queue.codec import read_verdict, reading
from bestofn.service.queue.job_queue import Queue
from bestofn.service.queue.keys import PRIORITIES, pair_id

MOST_ENDED = 5000  # more than the stream holds


@dataclass(frozen=True, slots=True)
class QueueStats:
    """The queue at one moment.

    Attributes:
        by_priority: work that waits or runs, by priority.
        queued, running: number of jobs.
        oldest_wait_seconds: longest wait of a job that has not started; 0 if none waits.
        estimated_wait_seconds: seconds for the whole backlog; None while no worker's speed is known.
        image_bytes, image_budget_bytes: bytes reserved for winner images, and their limit.
        kept_bytes, kept_budget_bytes: bytes of all else that is kept of jobs, at most, and their limit.
        dead_heats: number of heats in the dead-letter stream.
        workers: warm workers.
        refuses: reason why no job is accepted now; None if jobs are accepted.
    """

    by_priority: Mapping[Priority, Backlog]
    queued: int
    running: int
    oldest_wait_seconds: float
    estimated_wait_seconds: float | None
    image_bytes: int
    image_budget_bytes: int
    kept_bytes: int
    kept_budget_bytes: int
    dead_heats: int
    workers: tuple[WorkerInfo, ...]
    server: ServerOut
    refuses: str | None


@dataclass(frozen=True, slots=True)
class EndedJob:
    """A job that has ended.

    Attributes:
        stopped: reason of an early end; None: all candidates were judged.
        model, judge: names.
        winner: verdict on the best candidate, if there is one.
    """

    status: JobStatus
    stopped: str | None
    priority: str
    waited_seconds: float
    seconds: float
    model: str
    judge: str
    winner: Verdict | None


async def read_stats(queue: Queue) -> QueueStats:
    """Read the statistics. Raises redis' errors if the server is away."""
    keys = queue.keys
    async with queue.redis.pipeline(transaction=False) as pipe:
        pipe.hgetall(keys("backlog"))
        pipe.hget(keys("reserved"), "total")
        pipe.hget(keys("held"), "kept")
        pipe.zcard(keys("queued"))
        pipe.zrange(keys("queued"), 0, 0, withscores=True)
        pipe.xlen(keys("dead_letters"))
        pipe.time()
        pipe.info()
        backlog, reserved, kept, queued, oldest, dead, (seconds, micros), info = await pipe.execute()
    load = {name.decode(): max(0, int(value)) for name, value in backlog.items()}
    workers = tuple(await queue.workers())
    whole = _backlog(load, "")
    valkey = info.get("server_name") == "valkey"
    return QueueStats(
        by_priority={priority: _backlog(load, f"{priority}:") for priority in PRIORITIES},
        queued=queued,
        running=max(0, whole.jobs - queued),
        oldest_wait_seconds=max(0.0, seconds + micros / 1e6 - oldest[0][1] / 1000) if oldest else 0.0,
        estimated_wait_seconds=wait_seconds(whole.candidates, whole, workers),
        image_bytes=int(reserved or 0),
        image_budget_bytes=queue.settings.image_budget_bytes,
        kept_bytes=int(kept or 0),
        kept_budget_bytes=int(KEPT_SHARE * (int(info["maxmemory"]) or int(info["total_system_memory"]))),
        dead_heats=dead,
        workers=workers,
        server=ServerOut(
            name="valkey" if valkey else "redis",
            version=str(info["valkey_version" if valkey else "redis_version"]),
            memory_bytes=int(info["used_memory"]),
            max_memory_bytes=int(info["maxmemory"]) or None,
            policy=info["maxmemory_policy"],
            append_only=bool(info["aof_enabled"]),
        ),
        refuses=await queue.refuses(),
    )


@dataclass(frozen=True, slots=True)
class Holdings:
    """What one caller has of the queue: candidates and GFLOP that wait or run, and bytes of images and of all else."""

    candidates: int
    gflop: int
    image_bytes: int
    kept_bytes: int


async def read_holdings(queue: Queue, caller: str) -> Holdings:
    """What the jobs of an API key hold. Raises redis' errors if the server is away."""
    async with queue.redis.pipeline(transaction=False) as pipe:
        pipe.hget(queue.keys("callers"), caller)
        pipe.hmget(queue.keys("held"), [f"{name}:{caller}" for name in ("gflop", "images", "kept")])
        candidates, held = await pipe.execute()
    return Holdings(int(candidates or 0), *(int(value or 0) for value in held))


def max_holdings(stats: QueueStats, own: Holdings, settings: Settings) -> Holdings:
    """The most that a caller who has `own` may have now; 0 GFLOP where these have no limit."""
    everyone = sum(load.candidates for load in stats.by_priority.values())
    candidates = own_limit(own.candidates, everyone, settings.max_queued_candidates)
    gflop = round(1000 * sum(load.tflops for load in stats.by_priority.values()))
    return Holdings(
        min(candidates, settings.max_queued_candidates_per_key or candidates),
        own_limit(own.gflop, gflop, round(1000 * (settings.max_queued_tflops or 0))),
        own_limit(own.image_bytes, stats.image_bytes, settings.image_budget_bytes),
        own_limit(own.kept_bytes, stats.kept_bytes, stats.kept_budget_bytes),
    )


async def last_ended(queue: Queue) -> str:
    """Id of the last entry of the stream of ended jobs, for `ended_jobs`."""
    found = await queue.redis.xrevrange(queue.keys("ended"), count=1)
    return found[0][0].decode() if found else "0-0"


async def ended_jobs(queue: Queue, after: str) -> tuple[list[EndedJob], str]:
    """Readable jobs that ended after entry `after`, in order, and the entry for the next call."""
    found = await queue.redis.xrange(queue.keys("ended"), min=f"({after}", count=MOST_ENDED)
    if not found:
        return [], after
    names: dict[str, tuple[str, str]] = {}
    for info in await queue.announced():
        names[pair_id(info.schema_version, *info.revisions)] = (info.model.revision.name, info.judge.revision.name)
    jobs = []
    for _, fields in found:
        with suppress(JobUnreadable):  # left out, or no later job would ever be counted
            jobs.append(_ended(fields, names))
    return jobs, found[-1][0].decode()


@reading("an ended job")
def _ended(fields: Mapping[bytes, bytes], names: Mapping[str, tuple[str, str]]) -> EndedJob:
    model, judge = names[fields[b"pair"].decode()]
    leaders = json.loads(fields[b"leaders"])
    return EndedJob(
        status=JobStatus(fields[b"status"].decode()),
        stopped=fields.get(b"stopped", b"").decode() or None,
        priority=fields[b"priority"].decode(),
        waited_seconds=int(fields[b"waited"]) / 1000,
        seconds=int(fields[b"took"]) / 1000,
        model=model,
        judge=judge,
        winner=read_verdict(leaders[0][1:]) if leaders else None,
    )


def _backlog(load: Mapping[str, int], of: str) -> Backlog:
    return Backlog(load.get(f"{of}jobs", 0), load.get(f"{of}candidates", 0), load.get(f"{of}gflop", 0) / 1000)
