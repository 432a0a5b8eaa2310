"""A mixed load at 80 % of capacity for a long time, with cancels and a kill a minute: does anything grow or stick?

    python tests/chaos/soak.py --minutes 30

One API, one worker with the shapes checkpoint, three with the sleeping engine, of which two are killed in turn and
one is not; a queue's server of their own. As root a fourth one has a network of its own, which is cut for 20 s every
minute. Prints a table, writes soak.json and soak.png into
evaluation/results/reliability (or --out) and the table in its README.md; ends with 1 if a promise is broken.
"""

import argparse
import asyncio
import collections
import contextlib
import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # which -P leaves out, as the next one
sys.path.insert(0, str(Path(__file__).parent))

import httpx
import psutil
import soak_watch as watch
from figures import ROOT, Figure, machine, table
from place import ENGINE, PATIENCE_SECONDS, Api, Place, at_rest, place
from soak_book import Book, status_word
from soak_figures import Found, figures, publish
from soak_load import WAITING_SECONDS, Load, arrivals

import bestofn
from bestofn.service.core.deployments import deployments_of
from bestofn.service.core.jobs import ENDED, JobStatus
from tests.network import Namespace, forwarded, namespace

SHARE = 0.8  # of capacity
SLOTS, STEP_SECONDS = 8, 0.1  # of a sleeping worker
KILLED = 2  # sleeping workers that are killed in turn
WARM_UP_SECONDS = 60.0
SAMPLE_SECONDS = 10.0
KILL_SECONDS = 60.0
CUT_SECONDS = 20.0  # more than the lease
REFUSED_SECONDS = 3.0  # between two bodies that are refused
DRAIN_SECONDS = 300.0
SETTINGS: dict[str, Any] = {"lease_seconds": 15.0, "heartbeat_seconds": 3.0, "result_ttl_seconds": 180}
TORCH, SLEEPING = "worker (torch)", "worker (sleeping)"


@dataclass
class Run:
    """All that is looked at while it lasts."""

    here: Place
    api: Api
    crew: "subprocess.Popen[bytes]"
    watched: list[watch.Watched]
    server: watch.Server = field(default_factory=watch.Server)
    origin: float = field(default_factory=time.monotonic)
    kills: int = 0
    cuts: int = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.origin

    async def sample(self) -> None:
        """One sample of everything."""
        known = {one.pid for one in self.watched}
        for child in psutil.Process(self.crew.pid).children():
            if child.pid not in known:
                self.watched.append(watch.Watched("workers (sleeping, killed in turn)", child.pid, lasting=False))
        now = self.seconds
        for one in self.watched:
            one.sample(now, self.api.port)
        await self.server.sample(self.here, now)

    async def samples(self) -> None:
        """Samples until it is canceled."""
        for number in itertools.count():
            await self.sample()
            if number % 6 == 0:
                self.say(", ".join(f"{one.role} {one.samples[-1].rss // watch.MB} MB" for one in self.lasting()))
            await asyncio.sleep(SAMPLE_SECONDS)

    async def cut(self, space: Namespace) -> None:
        """Cuts a worker off its queue once a minute for longer than its lease, until it is canceled."""
        await asyncio.sleep(KILL_SECONDS / 2)
        while True:
            space.link(False)
            await asyncio.sleep(CUT_SECONDS)
            space.link(True)
            self.cuts += 1
            await asyncio.sleep(KILL_SECONDS - CUT_SECONDS)

    async def kill(self) -> None:
        """Kills the oldest of the crew every minute, until it is canceled."""
        while True:
            await asyncio.sleep(KILL_SECONDS)
            children = psutil.Process(self.crew.pid).children()
            min(children, key=lambda child: child.create_time()).send_signal(signal.SIGKILL)
            self.kills += 1

    def lasting(self) -> list[watch.Watched]:
        return [one for one in self.watched if one.lasting and one.samples]

    def say(self, text: str) -> None:
        print(f"{self.seconds:6.0f} s  {text}", flush=True)  # noqa: T201


async def soak(minutes: float, out: Path) -> list[Figure]:
    """Runs it; writes samples and plot into `out`."""
    async with place(**SETTINGS) as here, _crew(here) as crew, _cut_off(here) as space:
        program = [sys.executable, "-P", "-m", "bestofn.cli", "worker", "--devices", "cpu", "--threads", "1"]
        torch, sleeping = here.start(program, here.folder / "torch.log"), here.worker(SLOTS, STEP_SECONDS)
        await here.warm([torch, sleeping])
        api = await here.api(log_level="info")
        process_id = (await here.queue.redis.info("server"))["process_id"]
        lasting = {"API": api.process.pid, TORCH: torch.pid, SLEEPING: sleeping.pid, "queue's server": process_id}
        run = Run(here, api, crew, [watch.Watched(role, pid, lasting=True) for role, pid in lasting.items()])
        await _all_warm(here, 1 + KILLED + (space is not None))
        limits = httpx.Limits(max_connections=None, keepalive_expiry=5.0)
        async with (
            httpx.AsyncClient(base_url=api.url, timeout=180, limits=limits) as http,
            bestofn.AsyncClient(api.url) as client,
        ):
            pairs = {pair.model.revision.name: pair for pair in deployments_of(await here.queue.workers())}
            loads = {name: Load(http, client, Book(here), random.Random(name)) for name in pairs}
            looking = [asyncio.create_task(load.book.watch()) for load in loads.values()]
            looking.append(asyncio.create_task(run.samples()))
            speeds = await asyncio.gather(
                *(
                    loads[name].capacity(arrivals(pair, random.Random(1), {"poll": 1}), callers, WARM_UP_SECONDS)
                    for (name, pair), callers in zip(pairs.items(), _callers(pairs), strict=True)
                )
            )
            capacity = dict(zip(pairs, speeds, strict=True))
            run.say("; ".join(f"{name}: {1000 * speed:.3g} GFLOP/s" for name, speed in capacity.items()))
            for load in loads.values():
                load.done.clear()
                load.book.seconds.clear()
            before = {name: load.book.work for name, load in loads.items()}
            begun, until = run.seconds, time.monotonic() + 60 * minutes
            killing = asyncio.create_task(run.kill())
            cutting = [] if space is None else [asyncio.create_task(run.cut(space))]
            await asyncio.gather(
                *(
                    loads[name].arrive(
                        arrivals(pair, loads[name].rng), SHARE * capacity[name], WAITING_SECONDS * capacity[name], until
                    )
                    for name, pair in pairs.items()
                ),
                loads["fake"].refused(REFUSED_SECONDS, until),
            )
            ended = run.seconds
            for task in (killing, *cutting):
                task.cancel()
            if space is not None:
                await asyncio.gather(*cutting, return_exceptions=True)
                space.link(True)
            run.say("the load is over")
            unfinished = sum(await asyncio.gather(*(load.drained(DRAIN_SECONDS) for load in loads.values())))
        done = {name: load.book.work - before[name] for name, load in loads.items()}
        left = await at_rest(here.queue, PATIENCE_SECONDS)
        lines = api.requests()
        states = await _states(here, {line["job_id"] for line in lines if "job_id" in line})
        # Nothing is left of a job that was canceled before it began, once its result has expired.
        seen = {job: word for load in loads.values() for job, word in load.book.how.items()}
        states = {job: state or seen.get(job) for job, state in states.items()}
        run.say("waiting until the last results expire")
        await asyncio.sleep(SETTINGS["result_ttl_seconds"] + SAMPLE_SECONDS)
        await run.sample()
        for task in (*looking, killing):
            if task.done() and not task.cancelled():
                task.result()  # raises what ended it
            task.cancel()
        found = Found(
            minutes=minutes,
            window=(begun, ended),
            capacity=capacity,
            done=done,
            loads=loads,
            watched=run.lasting(),
            server=run.server,
            statuses=[line["status"] for line in lines],
            states=states,
            unfinished=unfinished,
            killed=run.kills,
            cut=run.cuts,
            begun_again=_begun_again(here),
            died=sum(one.gone for one in run.lasting()),
            dead=await here.queue.redis.xlen(here.queue.keys("dead_letters")),
            left=left,
            odd_keys=await watch.odd_keys(here),
        )
        out.mkdir(parents=True, exist_ok=True)
        _tell(run, found, out)
    made = figures(found)
    record = {
        "machine": machine(),
        "minutes": minutes,
        "begun": round(begun, 1),
        "ended": round(ended, 1),
        "figures": [asdict(figure) for figure in made],
        **watch.as_json(run.watched, run.server),
    }
    (out / "soak.json").write_text(json.dumps(record) + "\n")
    watch.plot(out / "soak.png", run.watched, run.server, begun, ended)
    return made


def _tell(run: Run, found: Found, out: Path) -> None:
    """What somebody who looks for the cause of a broken promise wants to read."""
    for name, load in found.loads.items():
        for what, count in load.odd.most_common(20):
            run.say(f"odd, {name}, {count} times: {what}")
    died = [f"{one.role} has ended" for one in run.lasting() if one.gone]
    stuck = [f"{job}: {state}" for job, state in found.states.items() if state not in ENDED]
    if stuck or any(load.odd for load in found.loads.values()):
        run.say(f"the API's log is kept: {shutil.copy(run.api.log, out / 'soak-api.log')}")
    for text in (*stuck[:20], *found.odd_keys[:20], *(f"{what}: {n}" for what, n in found.left.items()), *died):
        run.say(f"left: {text}")


@contextlib.asynccontextmanager
async def _crew(here: Place) -> "AsyncIterator[subprocess.Popen[bytes]]":
    """Workers under a supervisor, which is told to end them at the end."""
    script = str(Path(__file__).with_name("soak_crew.py"))
    command = [sys.executable, "-P", script, str(KILLED), str(SLOTS), str(STEP_SECONDS), str(here.notes)]
    process = here.start(command, here.folder / "crew.log")
    try:
        yield process
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)


@contextlib.asynccontextmanager
async def _cut_off(here: Place) -> AsyncIterator[Namespace | None]:
    """A namespace with a sleeping worker in it; None where there can be none."""
    with namespace() as space:
        if space is None:
            yield None
            return
        async with forwarded(space.here, here.server.folder / "queue.sock") as port:
            worker = [sys.executable, "-P", str(ENGINE), "fake", str(SLOTS), str(STEP_SECONDS), str(here.notes)]
            address = {"redis_url": f"redis://{space.here}:{port}"}
            process = here.start([*space.prefix, *worker], here.folder / "cut-off.log", address)
            yield space
            here.end(process)


async def _all_warm(here: Place, sleeping: int) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while sum(info.model.revision.name == "fake" for info in await here.queue.workers()) < sleeping:
            await asyncio.sleep(0.1)


def _callers(names: Iterable[str]) -> list[int]:
    """So many that workers never wait for them."""
    return [24 if name == "fake" else 6 for name in names]


async def _states(here: Place, jobs: set[str]) -> dict[str, JobStatus | None]:
    """The status of each job, of expired ones too; None of those that nothing is known of."""
    redis, keys = here.queue.redis, here.queue.keys
    states: dict[str, JobStatus | None] = {}
    for job in jobs:
        status, gone = await redis.hget(keys("job", job), "status"), await redis.get(keys("tombstone", job))
        states[job] = status_word(status, gone)
    return states


def _begun_again(here: Place) -> int:
    """Heats that sleeping workers began more than once."""
    lines = [line.split() for file in here.notes.glob("*.heats") for line in file.read_text().splitlines()]
    return sum(count > 1 for count in collections.Counter((job, heat) for _, job, heat in lines).values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--out", type=Path, default=ROOT / "evaluation" / "results" / "reliability")
    flags = parser.parse_args()
    made = asyncio.run(soak(flags.minutes, flags.out))
    print(table(made))  # noqa: T201
    page = flags.out / "README.md"
    if page.is_file():
        publish(made, machine(), page)
    broken = [figure for figure in made if figure.kept is False]
    print(f"{len(broken)} broken of {sum(f.kept is not None for f in made)} promises")  # noqa: T201
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
