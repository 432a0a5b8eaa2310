"""Addresses of the queue's server, and a server that is replaced by its replica under jobs that run."""

import asyncio
import contextlib
import functools
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import redis
from redis.asyncio.sentinel import SentinelConnectionPool

from bestofn.service.core.errors import SetupError, Unavailable
from bestofn.service.core.jobs import JobSpec, JobStatus
from bestofn.service.core.settings import Settings
from bestofn.service.queue.connection import check_server, connect_redis, without_password
from bestofn.service.queue.connection_errors import away
from bestofn.service.queue.job_queue import Queue
from tests.service.queue.test_server_states import worker
from tests.waiting import PATIENCE, until

SECRET = "s3cr3t"
MakeSpec = Callable[..., JobSpec]


@pytest.mark.parametrize("password", [f"{SECRET}/x", f"x/{SECRET}", f"x?{SECRET}", f"x#{SECRET}", f"{SECRET}:1x"])
@pytest.mark.parametrize("scheme", ["redis", "rediss", "redis+sentinel"])
def test_address_with_a_password_that_is_not_encoded_is_refused_without_a_word_of_it(
    scheme: str, password: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SetupError, match=r"written %40 %2F %3F %23") as caught:
        connect_redis(f"{scheme}://:{password}@host:63x9/main/0")
    assert SECRET not in str(caught.value) + caplog.text
    assert caught.value.__cause__ is None


def test_address_is_shown_without_its_password() -> None:
    assert without_password("rediss://user:a%40b@host:6379/0") == "rediss://host:6379/0"
    assert without_password("unix:///run/queue.sock") == "unix:///run/queue.sock"


def test_cluster_is_refused_at_start() -> None:
    with pytest.raises(SetupError, match="is in cluster mode"):
        check_server({"redis_version": "7.2.4", "redis_mode": "cluster"})


def test_sentinels_address_names_hosts_primary_user_and_database() -> None:
    client = connect_redis("rediss+sentinel://me:a%2Fb@one,two:7/main/3")
    pool = client.connection_pool
    assert isinstance(pool, SentinelConnectionPool)
    assert [s.connection_pool.connection_kwargs["host"] for s in pool.sentinel_manager.sentinels] == ["one", "two"]
    kwargs = pool.connection_kwargs
    assert (pool.service_name, kwargs["db"], kwargs["username"], kwargs["password"]) == ("main", 3, "me", "a/b")


@pytest.fixture
def servers(server_program: Path, tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    """Starts servers with options: `servers(port, "--replicaof", "127.0.0.1 7")`; they end with the test."""
    running = []

    def start(port: int, *options: str, config: Path | None = None) -> "subprocess.Popen[bytes]":
        folder = tmp_path / str(port)
        folder.mkdir()
        command = [str(server_program), *([str(config)] if config else []), "--port", str(port)]
        plain = [] if config else ["--save", "", "--repl-diskless-sync-delay", "0"]
        running.append(subprocess.Popen([*command, "--dir", str(folder), *plain, *options], stdout=subprocess.DEVNULL))
        until(lambda: _answers(port))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


@functools.cache
def ask(port: int, **options: bool) -> "redis.Redis":
    """A client that holds no connection open between two calls."""
    return redis.Redis(port=port, single_connection_client=False, **options)


def _answers(port: int) -> bool:
    with contextlib.suppress(redis.RedisError):
        return bool(ask(port).ping())
    return False


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in taken]


async def succeeds(queue: Queue, spec: JobSpec, submit: bool = True) -> None:
    """Submit a job until the server takes it, and follow it to its end."""

    async def again(call: Callable[[], Awaitable[object]]) -> object:
        while True:
            try:
                return await call()
            except (redis.RedisError, Unavailable) as error:  # Unavailable: no worker has announced itself here yet
                if isinstance(error, redis.RedisError) and not away(error):
                    raise
                await queue.drop_connections()
                await asyncio.sleep(0.05)

    async with asyncio.timeout(PATIENCE):
        if submit:
            await again(lambda: queue.submit(spec, cost=1.0))
        while (await again(lambda: queue.record(spec.id))).status is not JobStatus.SUCCEEDED:  # type: ignore[attr-defined]
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def endpoint(target: list[int]) -> AsyncIterator[int]:
    """One port for the server that `target` names: what is connected stays where it is when the target changes."""

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while content := await source.read(1 << 16):
                sink.write(content)
                await sink.drain()
        sink.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        with contextlib.closing(writer), contextlib.suppress(OSError):
            inner, out = await asyncio.open_connection("127.0.0.1", target[0])
            with contextlib.closing(out):
                await asyncio.gather(copy(reader, out), copy(inner, writer))

    serving: set[asyncio.Task[None] | None] = set()
    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield int(listening.sockets[0].getsockname()[1])
    finally:
        listening.close()
        async with asyncio.timeout(PATIENCE):  # each ends when its client has closed its connection
            await asyncio.gather(*filter(None, serving))


def linked(port: int) -> bool:
    return ask(port).info("replication").get("master_link_status") == "up"


async def test_endpoint_that_fails_over_goes_on_with_the_replica(
    servers: Callable[..., object], make_spec: MakeSpec, tmp_path: Path
) -> None:
    one, two = free_ports(2)
    servers(one)
    servers(two, "--replicaof", f"127.0.0.1 {one}")
    await asyncio.to_thread(until, lambda: linked(two))
    target = [one]
    async with endpoint(target) as port:
        settings = Settings(
            redis_url=f"redis://127.0.0.1:{port}", data_dir=tmp_path, heartbeat_seconds=0.2, lease_seconds=2.0
        )
        async with (
            worker(settings),
            contextlib.aclosing(Queue(str(settings.redis_url), settings)) as queue,
        ):
            await asyncio.to_thread(until, lambda: ask(one).exists("bestofn:pairs"))
            await succeeds(queue, make_spec())
            await asyncio.to_thread(until, lambda: ask(two).exists("bestofn:ended"))
            target[0] = two
            ask(two).replicaof("NO", "ONE")
            ask(one).replicaof("127.0.0.1", str(two))  # old connections stay on a replica
            await succeeds(queue, make_spec())
            assert int(ask(two).xlen("bestofn:ended")) == 2


async def test_sentinels_replace_a_killed_primary_under_a_running_job(
    servers: Callable[..., "subprocess.Popen[bytes]"], make_spec: MakeSpec, tmp_path: Path
) -> None:
    one, two, *ports = free_ports(5)
    primary = servers(one)
    servers(two, "--replicaof", f"127.0.0.1 {one}")
    await asyncio.to_thread(until, lambda: linked(two))
    sentinels = []
    for port in ports:
        config = tmp_path / f"sentinel-{port}.conf"
        config.write_text(
            f"sentinel monitor main 127.0.0.1 {one} 2\nsentinel down-after-milliseconds main 500\n"
            "sentinel failover-timeout main 2000\n"
        )
        sentinels.append(servers(port, "--sentinel", config=config))

    def known(port: int) -> bool:
        state = ask(port, decode_responses=True).sentinel_master("main")
        return (int(state["num-slaves"]), int(state["num-other-sentinels"])) == (1, 2)

    await asyncio.to_thread(until, lambda: all(map(known, ports)))
    address = f"redis+sentinel://{','.join(f'127.0.0.1:{port}' for port in ports)}/main/0"
    settings = Settings(redis_url=address, data_dir=tmp_path, heartbeat_seconds=0.2, lease_seconds=2.0)
    async with worker(settings), contextlib.aclosing(Queue(address, settings)) as queue:
        await asyncio.to_thread(until, lambda: ask(one).exists("bestofn:pairs"))
        job = make_spec(num_samples=64)
        await queue.submit(job, cost=1.0)
        await asyncio.to_thread(until, lambda: ask(two).exists(f"bestofn:job:{job.id}"))
        primary.kill()
        await succeeds(queue, job, submit=False)
        manager = queue.redis.connection_pool.sentinel_manager
        first = manager.sentinels[0].connection_pool.connection_kwargs["port"]
        sentinels[ports.index(first)].kill()
        found = await asyncio.gather(*(manager.discover_master("main") for _ in range(8)))
        assert found == [("127.0.0.1", two)] * 8
        assert len(set(manager.sentinels)) == 3  # callers at once overwrite none
        await succeeds(queue, make_spec())
