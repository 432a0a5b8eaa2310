"""Checks of the queue and its workers."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from redis import ConnectionPool, Redis
from redis.connection import parse_url
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from bestofn.service.core.errors import SetupError
from bestofn.service.core.scheduling import Backlog
from bestofn.service.core.settings import Settings
from bestofn.service.core.version import COMMIT, VERSION
from bestofn.service.core.workers import WorkerInfo
from bestofn.service.doctor.findings import Finding
from bestofn.service.queue.connection import SENTINEL, check_server
from bestofn.service.queue.embedded_server import find_redis, server_binary
from bestofn.service.queue.job_queue import Queue

ANSWER_SECONDS = 10.0  # a server of a busy machine takes its time
SLOW_SECONDS = 0.02  # a slow ping; each heartbeat and claim takes a few of them
FULL = 0.8  # share of maxmemory from which on submissions are refused
MIB = 2**20
SAFE_DEFAULT = "user default off resetpass ~* &* +@all"
HEALTH_USER = "user health on nopass nocommands +ping"


class QueueReport(NamedTuple):
    """What one visit to the server found."""

    info: dict[str, Any]
    ping_seconds: float
    workers: list[WorkerInfo]
    backlog: Backlog
    dead: int
    refuses: str | None


def queue(settings: Settings) -> Iterator[Finding]:
    """The server, its policy and memory, the work that waits, and the workers that are ready."""
    try:
        url = find_redis(settings)
    except SetupError:
        yield Finding("ok", "queue", f"none runs; `bestofn up` would start {server_binary()}")
        return
    try:
        state = asyncio.run(asyncio.wait_for(_visit(url, settings), ANSWER_SECONDS))
    except Exception as error:
        reason = "no answer" if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"
        yield Finding("fail", "queue", f"{url}: {' '.join(reason.split())}", _remedy(error))
        return
    yield from _server(url, state)
    yield from acl(url, valkey=state.info.get("server_name") == "valkey")
    yield from _work(state)
    yield from workers(state.workers)


def _remedy(error: Exception) -> str:
    if isinstance(error, AuthenticationError | NoPermissionError):
        return "put its user and password before the host in REDIS_URL, with a colon between and an @ behind"
    if isinstance(error, ValueError):
        return "an address looks like redis://localhost:6379"
    return "start it, or set REDIS_URL to the one that runs; from another host, see its bind address and firewall"


async def _visit(url: str, settings: Settings) -> QueueReport:
    queue = Queue(url, settings)
    try:
        await queue.redis.time()  # not a ping, which a server with a full disk refuses
        began = time.perf_counter()
        await queue.redis.time()
        ping = time.perf_counter() - began
        info = dict(await queue.redis.info())
        dead = int(await queue.redis.xlen(queue.keys("dead_letters")))
        return QueueReport(
            info, ping, await queue.workers(), await queue.backlog(), dead, await queue.refuses(jobs=False)
        )
    finally:
        await queue.aclose()


def _server(url: str, state: QueueReport) -> Iterator[Finding]:
    info = state.info
    kind = "Valkey" if info.get("server_name") == "valkey" else "Redis"
    version = info.get("valkey_version") or info.get("redis_version")
    kept, limit = bool(info.get("aof_enabled")), int(info.get("maxmemory", 0))
    found = (
        f"{kind} {version} at {url}, {info.get('maxmemory_policy')}, append-only file {'on' if kept else 'off'}, "
        f"{int(info['used_memory']) / MIB:.1f} MiB of {f'{limit / MIB:.0f} MiB' if limit else 'no limit'}, "
        f"up {int(info['uptime_in_seconds']) // 60} min, {1000 * state.ping_seconds:.1f} ms a call"
    )
    try:
        check_server(info)
    except SetupError as error:
        yield Finding("fail", "queue", found, error.detail)
        return
    if info.get("maxmemory_policy") != "noeviction":
        yield Finding("warn", "queue", found, "`redis-cli config set maxmemory-policy noeviction`, or jobs may be lost")
    elif not kept:
        yield Finding("warn", "queue", found, "`redis-cli config set appendonly yes`, or jobs are lost at a restart")
    elif state.refuses is not None:
        yield Finding(
            "fail", "queue", f"{found}; {state.refuses}", "make room on that disk; the server's log says more"
        )
    elif limit and int(info["used_memory"]) > FULL * limit:
        yield Finding("warn", "queue", found, "raise its maxmemory, or lower BESTOFN_RESULT_TTL_SECONDS")
    elif state.ping_seconds > SLOW_SECONDS:
        yield Finding("warn", "queue", found, "it answers slowly: move it nearer to the workers, or off a busy machine")
    else:
        yield Finding("ok", "queue", found)


def acl(url: str, *, valkey: bool) -> Iterator[Finding]:
    """Whether a restart of Redis loses the queue because of its ACL; nothing to report otherwise.

    Redis replays its append-only file as user default and checks the rights of this user inside every MULTI
    (redis/redis#14541). A user default without rights makes the replay drop the queue. Valkey does not check.
    """
    if valkey or SENTINEL in url:
        return
    options = parse_url(url) | {"username": "default", "password": "none"}  # type: ignore[no-untyped-call]
    pool = ConnectionPool(**options)
    client = Redis(connection_pool=pool)
    try:
        client.exists("bestofn")
    except NoPermissionError:
        fix = (
            f"in its ACL file replace the line of user default by `{SAFE_DEFAULT}`, add `{HEALTH_USER}` "
            "(docker/make-secrets does both), and restart it"
        )
        yield Finding("fail", "queue ACL", "a restart of Redis loses the queue: its user default has no rights", fix)
    except RedisError:
        pass  # the user is off or has a password, or the server is away, which another finding reports
    finally:
        client.close()
        pool.disconnect()


def _work(state: QueueReport) -> Iterator[Finding]:
    waiting = state.backlog
    found = f"{waiting.jobs} jobs with {waiting.candidates} candidates wait or run, {waiting.tflops:.0f} TFLOP"
    yield Finding("ok", "backlog", f"{found}; images hold up to {waiting.image_bytes / MIB:.0f} MiB")
    if state.dead:
        fix = "the workers' logs say why; `redis-cli xrange NAMESPACE:dead_letters - + count 1` shows the oldest"
        yield Finding("warn", "dead heats", f"{state.dead} heats could not be finished by any worker", fix)


def workers(infos: Sequence[WorkerInfo]) -> Iterator[Finding]:
    """The workers that are ready, by model and judge; two revisions of one name are an upgrade, or a mistake."""
    if not infos:
        yield Finding("warn", "workers", "none is ready", "start one: `bestofn worker`")
        return
    for (model, *judges), count in Counter(info.revisions for info in infos).items():
        held = (info for info in infos if info.revisions == (model, *judges))
        places = ", ".join(sorted(f"{info.host}:{info.device} ({info.state})" for info in held))
        judged = " and ".join(
            f"judge {revision.name} {revision.revision}" for revision in judges if revision is not None
        )
        yield Finding("ok", "workers", f"{count} with {model.name} {model.revision} and {judged}: {places}")
    for state, count in Counter(info.blocks for info in infos if info.blocks).items():
        yield Finding("ok", "blocks", f"{count} on a CPU in fast mode: {state}")
    others = sorted({info.version or "an older version" for info in infos} - {VERSION})
    if others:
        found = f"some run {', '.join(others)}, this is {VERSION}"
        yield Finding("warn", "versions", found, "install one version on every host: they share the queue's records")
    commits = sorted({info.commit for info in infos if info.commit is not None and COMMIT is not None} - {COMMIT})
    if commits and not others:
        found = f"some were built from {', '.join(commits)}, this from {COMMIT}"
        yield Finding("warn", "commits", found, "after a `git pull`: docker compose up --build, on every host")
    for kind, revisions in (
        ("model", {c.model.revision for c in infos}),
        ("judge", {c.judge.revision for c in infos}),
    ):
        twice = [name for name, times in Counter(revision.name for revision in revisions).items() if times > 1]
        if twice:
            found = f"workers run several revisions of {kind} {', '.join(twice)}"
            yield Finding("warn", "workers", found, "pin one with NAME@REVISION; new jobs go to the one announced last")
