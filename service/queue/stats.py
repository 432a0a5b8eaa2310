"""The queue as its operator sees it: how much waits, who works, what its server holds, and how jobs have ended."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from bestofn.judge.verdict import Verdict
from bestofn.service.core.jobs import JobStatus, Priority
from bestofn.service.core.scheduling import Backlog, wait_seconds
from bestofn.service.core.workers import WorkerInfo
from bestofn.service.queue.codec import read_verdict
from bestofn.service.queue.job_queue import Queue
from bestofn.service.queue.keys import PRIORITIES, pair_id

MOST_ENDED = 5000  # more than the stream holds


@dataclass(frozen=True, slots=True)
class Server:
    """The queue's server. `max_memory_bytes` is None where it has no limit."""

    name: str
    version: str
    memory_bytes: int
    max_memory_bytes: int | None
    policy: str
    append_only: bool


@dataclass(frozen=True, slots=True)
class QueueStats:
    """The queue at one moment.

    Attributes:
        loads: what waits or runs, by priority.
        queued, running: jobs.
        oldest_wait_seconds: of the job that has waited the longest for its start; 0 if none waits.
        estimated_wait_seconds: until all that waits or runs is done; None while nobody knows the workers' speed.
        image_bytes: that winners' pictures take or may come to take.
        dead: heats in the dead-letter stream.
        workers: that are warm.
        refuses: why no job is taken now, in plain words; None if jobs are taken.
    """

    loads: Mapping[Priority, Backlog]
    queued: int
    running: int
    oldest_wait_seconds: float
    estimated_wait_seconds: float | None
    image_bytes: int
    dead: int
    workers: tuple[WorkerInfo, ...]
    server: Server
    refuses: str | None


@dataclass(frozen=True, slots=True)
class EndedJob:
    """How a job has ended. `model` and `judge` are names, `winner` is the verdict on the best if there is one.

    `stopped` says why it ended before its last candidate; None if it did not.
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
    """Looks at the queue. Raises redis' errors if its server is away."""
    keys = queue.keys
    async with queue.redis.pipeline(transaction=False) as pipe:
        pipe.hgetall(keys("backlog"))
        pipe.hget(keys("reserved"), "total")
        pipe.zcard(keys("queued"))
        pipe.zrange(keys("queued"), 0, 0, withscores=True)
        pipe.xlen(keys("dead_letters"))
        pipe.time()
        pipe.info()
        backlog, reserved, queued, oldest, dead, (seconds, micros), info = await pipe.execute()
    load = {name.decode(): max(0, int(value)) for name, value in backlog.items()}
    workers = tuple(await queue.workers())
    whole = _backlog(load, "")
    valkey = info.get("server_name") == "valkey"
    return QueueStats(
        loads={priority: _backlog(load, f"{priority}:") for priority in PRIORITIES},
        queued=queued,
        running=max(0, whole.jobs - queued),
        oldest_wait_seconds=max(0.0, seconds + micros / 1e6 - oldest[0][1] / 1000) if oldest else 0.0,
        estimated_wait_seconds=wait_seconds(whole.candidates, whole, workers),
        image_bytes=int(reserved or 0),
        dead=dead,
        workers=workers,
        server=Server(
            name="valkey" if valkey else "redis",
            version=str(info["valkey_version" if valkey else "redis_version"]),
            memory_bytes=int(info["used_memory"]),
            max_memory_bytes=int(info["maxmemory"]) or None,
            policy=info["maxmemory_policy"],
            append_only=bool(info["aof_enabled"]),
        ),
        refuses=await queue.refuses(),
    )


async def last_ended(queue: Queue) -> str:
    """The place of the job that ended last, for `ended_jobs`."""
    found = await queue.redis.xrevrange(queue.keys("ended"), count=1)
    return found[0][0].decode() if found else "0-0"


async def ended_jobs(queue: Queue, after: str) -> tuple[list[EndedJob], str]:
    """Jobs that have ended after this place, in order, and the place to ask from next."""
    found = await queue.redis.xrange(queue.keys("ended"), min=f"({after}", count=MOST_ENDED)
    if not found:
        return [], after
    names = {}
    for info in await queue.announced():
        names[pair_id(*info.revisions)] = (info.model.revision.name, info.judge.revision.name)
    return [_ended(fields, names) for _, fields in found], found[-1][0].decode()


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
