"""A restart of the queue's server keeps every job under the ACLs as shipped, on every server that is here."""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from bestofn.service.core.jobs import JobStatus
from bestofn.service.core.settings import Settings
from bestofn.service.doctor.queue import acl
from bestofn.service.queue.job_queue import Queue
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[3]
UNSAFE = "user default on nopass nocommands +ping"
COMMAND = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["redis"]["command"]


@contextmanager
def served(binary: Path, folder: Path, acl_file: Path) -> Iterator[Path]:
    """The server with the compose file's options, on a socket; ended by SIGKILL, as a host that fails would."""
    socket = folder / "s"
    values = {"--aclfile": str(acl_file), "--dir": str(folder), "--port": "0", "--maxmemory": "100mb"}
    options = COMMAND[1:]
    options = [values.get(before, option) for before, option in zip(["", *options], options, strict=False)]
    command = [str(binary), *options, "--unixsocket", str(socket), "--appendfsync", "always"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        until(lambda: answers(socket))
        yield socket
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def answers(socket: Path) -> bool:
    """As the health check asks: user health, who may only ping."""
    try:
        with redis.Redis(unix_socket_path=str(socket), username="health", password="health") as client:
            return bool(client.ping())
    except (redis.ConnectionError, redis.exceptions.BusyLoadingError):
        return False


def acls(folder: Path) -> dict[str, tuple[Path, str]]:
    """The shipped ACL files, each with the login of its client."""
    subprocess.run([str(ROOT / "docker" / "make-secrets"), str(folder)], check=True, capture_output=True)
    login = (folder / "bestofn_redis_url").read_text().removeprefix("redis://").partition("@")[0]
    return {"made": (folder / "redis_acl", login), "none": (ROOT / "docker/secrets/none/redis_acl", "")}


def url(socket: Path, login: str) -> str:
    return f"unix://{login}@{socket}" if login else f"unix://{socket}"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="docker/make-secrets needs openssl")
@pytest.mark.parametrize("kind", ["made", "none"])
def test_a_restart_keeps_every_key_and_the_job_goes_on(
    server_program: Path, kind: str, tmp_path: Path, make_spec: Any, finish: Any, open_lane: Any
) -> None:
    folder = Path(os.fsdecode(tmp_path))
    acl_file, login = acls(tmp_path / "secrets")[kind]

    async def submit(address: str, spec: Any) -> int:
        queue = await Queue.connect(Settings(redis_url=address))
        consumer = await open_lane(queue)
        await queue.submit(spec, cost=1)
        [claim] = await consumer.claim(1, 0)
        await consumer.complete(claim, finish(claim.heat))
        size = int(await queue.redis.dbsize())
        await queue.aclose()
        return size

    async def complete(address: str, spec: Any) -> tuple[int, JobStatus]:
        queue = await Queue.connect(Settings(redis_url=address))
        size = int(await queue.redis.dbsize())
        consumer = await open_lane(queue)
        while claims := await consumer.claim(4, 0):
            for claim in claims:
                await consumer.complete(claim, finish(claim.heat))
        status = (await queue.record(spec.id)).status
        await queue.aclose()
        return size, status

    spec = make_spec(num_samples=12)
    with served(server_program, folder, acl_file) as socket:
        before = asyncio.run(submit(url(socket, login), spec))
    with served(server_program, folder, acl_file) as socket:
        assert asyncio.run(complete(url(socket, login), spec)) == (before, JobStatus.SUCCEEDED)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="docker/make-secrets needs openssl")
def test_the_doctor_finds_an_acl_that_loses_the_queue_and_make_secrets_repairs_it(
    server_program: Path, tmp_path: Path
) -> None:
    files = acls(tmp_path / "secrets")
    file, login = files["made"]
    file.write_text(f"{UNSAFE}\n{file.read_text().splitlines()[-1]}\n")
    unsafe = tmp_path / "unsafe"
    unsafe.mkdir()
    command = [str(server_program), "--aclfile", str(file), "--port", "0", "--unixsocket", str(unsafe / "s")]
    process = subprocess.Popen([*command, "--dir", str(unsafe)], stdout=subprocess.DEVNULL)
    try:
        until(lambda: (unsafe / "s").exists())
        valkey = server_program.name.startswith("valkey")
        assert [finding.state for finding in acl(url(unsafe / "s", login), valkey=valkey)] == (
            [] if valkey else ["fail"]
        )
    finally:
        process.kill()
        process.wait()
    acls(tmp_path / "secrets")
    assert UNSAFE not in file.read_text()
    with served(server_program, tmp_path, file) as socket:
        assert list(acl(url(socket, login), valkey=False)) == []
