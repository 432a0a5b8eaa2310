"""Queue statistics for operators: backlog, workers, the server's memory, and how jobs have ended."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from bestofn.judge.verdict import Verdict
from bestofn.service.core.errors import JobUnreadable
from bestofn.service.core.jobs import JobStatus
from bestofn.service.core.scheduling import Backlog, wait_seconds
from bestofn.service.core.schemas import CallerOut, QueueOut, ServerOut
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
        queue: work that waits or runs, the bytes of images and of all else that is kept, and their limits.
        workers: warm workers.
        refuses: reason why no job is accepted now; None if jobs are accepted.
    """

    queue: QueueOut
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
        queue=QueueOut.model_validate(
            {
                "queued": queued,
                "running": max(0, whole.jobs - queued),
                "by_priority": {priority: _backlog(load, f"{priority}:") for priority in PRIORITIES},
                "oldest_wait_seconds": max(0.0, seconds + micros / 1e6 - oldest[0][1] / 1000) if oldest else 0.0,
                "estimated_wait_seconds": wait_seconds(whole.candidates, whole, workers),
                "image_bytes": int(reserved or 0),
                "image_budget_bytes": queue.settings.image_budget_bytes,
                "kept_bytes": int(kept or 0),
                "kept_budget_bytes": int(KEPT_SHARE * (int(info["maxmemory"]) or int(info["total_system_memory"]))),
                "dead_heats": dead,
            }
        ),
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


async def read_caller(queue: Queue, all_jobs: QueueOut, caller: str) -> CallerOut:
    """What the jobs of an API key hold, and the most that they may. Raises redis' errors if the server is away.

    Args:
        queue: holds the jobs.
        all_jobs: what the jobs of all callers hold.
        caller: name of the key.
    """
    async with queue.redis.pipeline(transaction=False) as pipe:
        pipe.hget(queue.keys("callers"), caller)
        pipe.hmget(queue.keys("held"), [f"{name}:{caller}" for name in ("gflop", "images", "kept")])
        waiting, held = await pipe.execute()
    candidates, gflop, images, kept = (int(value or 0) for value in (waiting, *held))
    settings, loads = queue.settings, all_jobs.by_priority.values()
    most = own_limit(candidates, sum(load.candidates for load in loads), settings.max_queued_candidates)
    max_tflops = None
    if settings.max_queued_tflops is not None:
        limit = round(1000 * settings.max_queued_tflops)
        max_tflops = own_limit(gflop, round(1000 * sum(load.tflops for load in loads)), limit) / 1000
    return CallerOut(
        candidates=candidates,
        max_candidates=min(most, settings.max_queued_candidates_per_key or most),
        tflops=gflop / 1000,
        max_tflops=max_tflops,
        image_bytes=images,
        max_image_bytes=own_limit(images, all_jobs.image_bytes, all_jobs.image_budget_bytes),
        kept_bytes=kept,
        max_kept_bytes=own_limit(kept, all_jobs.kept_bytes, all_jobs.kept_budget_bytes),
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
