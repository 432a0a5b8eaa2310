"""bestofn doctor: whether this machine has what a server, a worker and the queue need."""

import asyncio
import importlib.metadata
import json as jsonlib
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from bestofn.service.cli import target
from bestofn.service.cli.console import FAILURE, say
from bestofn.service.settings import Settings, load_settings

State = Literal["ok", "warn", "fail"]
ENOUGH_DISK = 10 * 2**30
LITTLE_DISK = 2**30
PACKAGES = ("fastapi", "redis", "tokenizers", "torch", "diffusers", "transformers")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, how it is, and what to do about it."""

    state: State
    what: str
    found: str
    fix: str = ""


def doctor(
    redis_url: Annotated[str | None, typer.Option(help="The queue's server.", show_default="of `bestofn up`")] = None,
    model: Annotated[str | None, typer.Option(help="shapes, a folder, or a hub name with @revision.")] = None,
    judge: Annotated[str | None, typer.Option(help="As --model, for the judge.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Look at packages, device, memory, queue, checkpoints and disk; exit status 1 if something cannot work."""
    settings = load_settings(redis_url=redis_url, model=model, judge=judge)
    findings = list(examine(settings))
    if json:
        typer.echo(jsonlib.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            fix = f" -> {finding.fix}" if finding.fix else ""
            typer.echo(f"{finding.state:4}  {finding.what:11} {finding.found}{fix}")
    failed = sum(finding.state == "fail" for finding in findings)
    if failed:
        say(f"bestofn: {failed} of {len(findings)} checks failed")
        raise typer.Exit(FAILURE)


def examine(settings: Settings, names: Iterable[str] | None = None) -> Iterator[Finding]:
    """The findings of these checks, or of all (`CHECKS`); a check that breaks is a failure and stops no other."""
    for name in CHECKS if names is None else names:
        try:
            yield from CHECKS[name](settings)
        except Exception as error:  # whatever is wrong belongs into the report
            yield Finding("fail", name, " ".join(f"{type(error).__name__}: {error}".split()))


def _python(settings: Settings) -> Iterator[Finding]:
    yield Finding("ok", "python", f"{platform.python_version()} on {platform.platform()}")


def _packages(settings: Settings) -> Iterator[Finding]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "missing"
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    if "missing" in versions.values():
        fix = "for a worker or --local: pip install 'bestofn[worker]'"
        yield Finding("warn", "packages", f"{listed} (enough for API and client)", fix)
    else:
        yield Finding("ok", "packages", listed)


def _device(settings: Settings) -> Iterator[Finding]:
    if not target.can_draw_here():
        return
    import torch

    from bestofn.service.load import devices

    for name in devices(settings):
        if name == "cpu":
            yield Finding("ok", "device", f"cpu, {os.cpu_count()} cores")
        else:
            about = torch.cuda.get_device_properties(name)
            yield Finding("ok", "device", f"{name}, {about.name}, {about.total_memory / 2**30:.0f} GiB")


def _memory(settings: Settings) -> Iterator[Finding]:
    if not target.can_draw_here():
        return
    import torch

    from bestofn.judge.loader import PARTS
    from bestofn.models import residency
    from bestofn.models.checkpoint import Checkpoint
    from bestofn.models.generator import FOLDERS
    from bestofn.service.load import devices, find_judge

    device = torch.device(devices(settings)[0])
    width = 4 if device.type == "cpu" else 2
    generator, judge = Checkpoint.resolve(settings.model).path, find_judge(settings.judge).path
    folders = [*(generator / folder for folder in FOLDERS.values()), *(judge / part for part in PARTS)]
    sizes = [residency.weight_bytes(folder, width) for folder in folders]
    has = residency.memory_bytes(device)
    found = f"{has / 2**30:.1f} GiB; all weights together take {sum(sizes) / 2**30:.2f} GiB"
    if max(sizes) > has:
        yield Finding("fail", "memory", found, "choose a smaller checkpoint or a larger device")
    elif sum(sizes) > 0.8 * has:
        yield Finding("warn", "memory", found, "parts will take turns in memory, which is slower")
    else:
        yield Finding("ok", "memory", found)


def _queue(settings: Settings) -> Iterator[Finding]:
    from bestofn.service.errors import SetupError
    from bestofn.service.redis_server import find_redis, server_binary

    try:
        url = find_redis(settings)
    except SetupError:
        yield Finding("ok", "queue", f"none runs; `bestofn up` would start {server_binary()}")
        return
    info, workers = asyncio.run(_look(url, settings))
    kind = "Valkey" if info.get("server_name") == "valkey" else "Redis"
    version = info.get("valkey_version") or info.get("redis_version")
    policy, kept = info.get("maxmemory_policy"), bool(info.get("aof_enabled"))
    found = f"{kind} {version}, {policy}, append-only file {'on' if kept else 'off'}, {info.get('used_memory_human')}"
    if not kept:
        yield Finding("warn", "queue", found, "`redis-cli config set appendonly yes`, or jobs are lost at a restart")
    else:
        yield Finding("ok", "queue", found)
    if workers:
        yield Finding("ok", "workers", ", ".join(workers))
    else:
        yield Finding("warn", "workers", "none is ready", "start one: `bestofn worker`")


async def _look(url: str, settings: Settings) -> tuple[dict[str, Any], list[str]]:
    """What the server reports of itself, and the workers that are ready. Raises SetupError if it does not fit."""
    from bestofn.service.queue.queue import Queue, connect_redis

    queue = Queue(connect_redis(url), settings)
    try:
        await queue.check()
        cards = await queue.cards()
        return dict(await queue.redis.info()), [f"{card.worker} ({card.model.pin.name})" for card in cards]
    finally:
        await queue.aclose()


def _model(settings: Settings) -> Iterator[Finding]:
    if not target.can_draw_here():
        return
    from bestofn.models.checkpoint import Checkpoint

    checkpoint = Checkpoint.resolve(settings.model)
    yield Finding("ok", "model", f"{checkpoint.name}, revision {checkpoint.revision}, at {checkpoint.path}")


def _judge(settings: Settings) -> Iterator[Finding]:
    if not target.can_draw_here():
        return
    from bestofn.service.load import find_judge

    judge = find_judge(settings.judge)
    yield Finding("ok", "judge", f"{judge.pin.name}, revision {judge.pin.revision}, at {judge.path}")


def _disk(settings: Settings) -> Iterator[Finding]:
    folder = next(parent for parent in (settings.data_dir, *settings.data_dir.parents) if parent.is_dir())
    if not os.access(folder, os.W_OK):
        yield Finding("fail", "disk", f"{folder} is not writable", "set BESTOFN_DATA_DIR to a folder that is")
        return
    free = shutil.disk_usage(folder).free
    state: State = "ok" if free >= ENOUGH_DISK else "warn" if free >= LITTLE_DISK else "fail"
    fix = "" if state == "ok" else "free some, or set BESTOFN_DATA_DIR to another disk"
    yield Finding(state, "disk", f"{free / 2**30:.1f} GiB free in {Path(folder)}", fix)


def _server(settings: Settings) -> Iterator[Finding]:
    address = settings.server or target.running_server(settings)
    if address is not None:
        yield Finding("ok", "server", address)


CHECKS: Mapping[str, Callable[[Settings], Iterator[Finding]]] = {
    "python": _python,
    "packages": _packages,
    "device": _device,
    "memory": _memory,
    "queue": _queue,
    "model": _model,
    "judge": _judge,
    "disk": _disk,
    "server": _server,
}


def add_to(program: typer.Typer) -> None:
    program.command(epilog="Example: `bestofn doctor --redis-url redis://queue:6379`")(doctor)
