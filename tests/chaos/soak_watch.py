"""What processes and the queue's server take over time: samples, growth, a plot."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from place import Place

MB = 2**20
# Of keys that live as long as the namespace, as bestofn.service.queue.keys lists them.
LASTING = (
    "pairs",
    "signing_key",
    "pair:",
    "backlog",
    "callers",
    "queued",
    "deadlines",
    "ended",
    "images",
    "hold",
    "held",
    "abandoned",
    "dead",
    "tokenizer:",
)
OF_JOBS = ("job:", "tombstone:", "idempotency:")


@dataclass(frozen=True, slots=True)
class Sample:
    """A process at a moment. `files` are its open descriptors, without the connections of callers."""

    seconds: float
    rss: int  # bytes
    uss: int  # bytes that are its own
    files: int
    callers: int
    threads: int


@dataclass
class Watched:
    """One process and its samples. `lasting`: it has to be there from the first to the last."""

    role: str
    pid: int
    lasting: bool
    samples: list[Sample] = field(default_factory=list)
    gone: bool = False

    def sample(self, seconds: float, port: int) -> None:
        """Takes a sample while the process is there; connections that were made to `port` are callers'."""
        try:
            if not self.gone:
                self._sample(psutil.Process(self.pid), seconds, port)
        except psutil.NoSuchProcess:
            self.gone = True

    def _sample(self, process: psutil.Process, seconds: float, port: int) -> None:
        memory = process.memory_full_info()
        callers = sum(
            one.status == psutil.CONN_ESTABLISHED and one.laddr.port == port for one in process.net_connections("inet")
        )
        files = process.num_fds() - callers
        self.samples.append(Sample(seconds, memory.rss, memory.uss, files, callers, process.num_threads()))


@dataclass(frozen=True, slots=True)
class Fifths:
    """The second fifth of a time against the last one."""

    second: list[Sample]
    last: list[Sample]

    @classmethod
    def of(cls, samples: Sequence[Sample], begun: float, ended: float) -> "Fifths":
        """Of a process' samples between two moments; the first fifth is taken for warming up."""
        fifth = (ended - begun) / 5

        def part(number: int) -> list[Sample]:
            start = begun + number * fifth
            return [sample for sample in samples if start <= sample.seconds <= start + fifth]

        return cls(part(1), part(4))

    def growth(self, name: str) -> float:
        """Of the median, in percent."""
        before, after = (statistics.median(getattr(s, name) for s in part) for part in (self.second, self.last))
        return 100.0 * float(after / before - 1.0)

    def more(self, name: str) -> float:
        """By how much the median has grown."""
        before, after = (statistics.median(getattr(s, name) for s in part) for part in (self.second, self.last))
        return float(after - before)

    def most(self, name: str) -> tuple[int, int]:
        """The greatest value of each."""
        before, after = (max(getattr(s, name) for s in part) for part in (self.second, self.last))
        return before, after


@dataclass
class Server:
    """The queue's server over time; `used` in bytes, `standing`: keys of jobs that have not expired."""

    seconds: list[float] = field(default_factory=list)
    used: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    standing: list[int] = field(default_factory=list)

    async def sample(self, here: Place, seconds: float) -> None:
        redis, prefix = here.queue.redis, f"{here.settings.namespace}:job:".encode()
        used = (await redis.info("memory"))["used_memory"]
        names = [name async for name in redis.scan_iter(count=1000)]
        self.seconds.append(seconds)
        self.used.append(used)
        self.keys.append(len(names))
        self.standing.append(sum(name.startswith(prefix) for name in names))


async def odd_keys(here: Place) -> list[str]:
    """Keys without a time to live beside the known few, and keys of nobody."""
    redis, known = here.queue.redis, here.settings.namespace
    odd = []
    async for name in redis.scan_iter(count=1000):
        text = name.decode().removeprefix(f"{known}:")
        if text.startswith(LASTING):
            continue
        if not text.startswith(OF_JOBS) or await redis.ttl(name) < 0:
            odd.append(text)
    return odd


def as_json(watched: Sequence[Watched], server: Server) -> dict[str, Any]:
    """All samples, a list a measure."""
    measures = Sample.__slots__
    return {
        "processes": [
            {"role": one.role, "pid": one.pid, "lasting": one.lasting}
            | {name: [round(getattr(sample, name), 1) for sample in one.samples] for name in measures}
            for one in watched
        ],
        "server": asdict(server),
    }


def plot(path: Path, watched: Sequence[Watched], server: Server, begun: float, ended: float) -> None:
    """Memory and descriptors of every process over time, and what the queue's server holds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (memory, files, queue) = pyplot.subplots(3, 1, figsize=(10, 10), layout="constrained", sharex=True)
    colours = {role: f"C{i}" for i, role in enumerate(dict.fromkeys(one.role for one in watched))}
    told = set()
    for one in watched:
        minutes = [sample.seconds / 60 for sample in one.samples]
        style: dict[str, Any] = {"color": colours[one.role], "lw": 1.6 if one.lasting else 0.8}
        label = None if one.role in told else one.role
        told.add(one.role)
        memory.plot(minutes, [sample.rss / MB for sample in one.samples], label=label, **style)
        files.plot(minutes, [sample.files for sample in one.samples], label=label, **style)
    minutes = [seconds / 60 for seconds in server.seconds]
    queue.plot(minutes, [used / MB for used in server.used], color="C6", label="used memory (MB)")
    queue.plot(minutes, [count / 1000 for count in server.standing], color="C7", label="keys of jobs (thousands)")
    queue.plot(minutes, [count / 1000 for count in server.keys], "--", color="C7", label="all keys (thousands)")
    memory.set_ylabel("resident memory (MB)")
    files.set_ylabel("open descriptors without callers'")
    queue.set_ylabel("queue's server")
    queue.set_xlabel("minutes")
    for axis in (memory, files, queue):
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
        axis.axvspan(begun / 60, ended / 60, color="#999999", alpha=0.08, lw=0)
        axis.legend(frameon=False, fontsize=8, loc="center right")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
