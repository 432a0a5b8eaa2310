"""What a soak has found, as figures: whether anything grew, stuck or was answered wrongly."""

import collections
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from figures import Figure, at_most, exactly, percentile, table, told
from soak_load import ACTS, Load
from soak_watch import MB, Fifths, Server, Watched

from bestofn.service.core.jobs import ENDED, JobStatus

GROWTH = 5.0  # percent
POOLED = 2  # connections that a busy moment opens and a pool keeps; a leak is one a kill or cut, dozens in all
HEADING = "## Over a long time"
_NAME = "soak"


@dataclass(frozen=True)
class Found:
    """All that was counted; mappings by the name of a model."""

    minutes: float
    window: tuple[float, float]  # of the load, in seconds of the samples
    capacity: Mapping[str, float]  # TFLOP a second
    done: Mapping[str, float]  # TFLOP
    loads: Mapping[str, Load]
    watched: Sequence[Watched]  # of those that last
    server: Server
    statuses: Sequence[int]  # of every request
    states: Mapping[str, JobStatus | None]  # of every job that was accepted
    unfinished: int  # callers who still wait for their job
    killed: int
    cut: int  # times that the network of a worker was cut
    begun_again: int  # heats
    died: int  # processes that nobody killed
    dead: int  # heats in the dead-letter stream
    left: Mapping[str, int]  # gauges of the queue that are not 0
    odd_keys: Sequence[str]


def figures(found: Found) -> list[Figure]:
    """The table."""
    ends = collections.Counter(str(state) for state in found.states.values())
    stuck = max(found.unfinished, sum(state not in ENDED for state in found.states.values()))
    odd = sum(load.odd.total() for load in found.loads.values())
    mistakes = sum(status >= 500 and status not in (503, 504) for status in found.statuses)
    return [
        _told("length of the load", f"{found.minutes:g} min"),
        *(figure for name in found.loads for figure in _load(found, name)),
        _told("requests answered by the API", str(len(found.statuses))),
        _told("jobs accepted; how they ended", f"{len(found.states)}; {_counted(ends)}"),
        _none("jobs stuck: neither succeeded, failed nor canceled", stuck),
        _none("jobs failed", ends["failed"]),
        _none("heats in the dead-letter stream", found.dead),
        _told("workers killed; heats that were begun again for it", f"{found.killed}; {found.begun_again}"),
        _told("network of a worker cut, for 20 s each", str(found.cut)),
        _none("answers or streams other than they should be", odd),
        _none("answers of 5xx, but for 503 and 504", mistakes),
        _none("processes that ended without being killed", found.died),
        *(figure for one in found.watched for figure in _process(one, found.window)),
        _told("queue's memory, early and late; keys of jobs", _queue(found.server, found.window)),
        _none("gauges and streams of the queue that are not 0 afterwards", len(found.left)),
        _none("keys of jobs when their results have expired", found.server.standing[-1]),
        _none("unknown keys without a time to live", len(found.odd_keys)),
    ]


def publish(made: Sequence[Figure], on: str, page: Path) -> None:
    """The table at the end of its section of reliability.md; `on` names the machine."""
    head, mark, rest = page.read_text().partition(f"{HEADING}\n")
    section, end, after = rest.partition("\n## ")
    words = section.partition("\n| section")[0].rstrip()
    page.write_text(f"{head}{mark}{words}\n\n{table(made)}\n\nMeasured on {on}.\n{end}{after}")


def _load(found: Found, name: str) -> list[Figure]:
    load, capacity = found.loads[name], found.capacity[name]
    whole = 60 * found.minutes * capacity
    waits = f"{percentile(load.book.seconds, 0.5):.1f} s and {percentile(load.book.seconds, 0.99):.1f} s"
    shares = f"{100 * load.offered / whole:.0f} % and {100 * found.done[name] / whole:.0f} %"
    return [
        _told(f"{name}: capacity, measured before", f"{1000 * capacity:.3g} GFLOP/s"),
        _told(f"{name}: offered and done, of capacity", shares),
        _told(
            f"{name}: arrivals; left out because too much waited",
            f"{sum(load.done[act] for act in ACTS)}; {load.left_out}",
        ),
        _told(f"{name}: job's time, median and p99", waits),
        _told(f"{name}: what callers did", _counted(load.done)),
    ]


def _process(one: Watched, window: tuple[float, float]) -> list[Figure]:
    """Whether memory and descriptors of a process have stayed the same."""
    fifths = Fifths.of(one.samples, *window)
    early, late = (statistics.median(sample.rss for sample in part) / MB for part in (fifths.second, fifths.last))
    files, threads = (", ".join(map(str, fifths.most(name))) for name in ("files", "threads"))
    rows = [
        _told(f"{one.role}: resident memory, early and late", f"{early:.0f} and {late:.0f} MB"),
        _told(f"{one.role}: descriptors, most early and late; threads", f"{files}; {threads}"),
    ]
    if one.role.startswith("queue"):
        return rows
    return [
        *rows,
        at_most(_NAME, f"{one.role}: growth of resident memory", GROWTH, fifths.growth("rss"), "%"),
        _told(f"{one.role}: growth of memory of its own", f"{fifths.growth('uss'):.2g} %"),
        at_most(_NAME, f"{one.role}: descriptors more than before", POOLED, max(0, round(fifths.more("files"))), ""),
    ]


def _queue(server: Server, window: tuple[float, float]) -> str:
    begun, ended = window
    fifth = (ended - begun) / 5

    def median(values: Sequence[int], number: int) -> float:
        start = begun + number * fifth
        return statistics.median(v for t, v in zip(server.seconds, values, strict=True) if start <= t <= start + fifth)

    used, standing = ([median(values, number) for number in (1, 4)] for values in (server.used, server.standing))
    return f"{used[0] / MB:.1f}, {used[1] / MB:.1f} MB; {standing[0]:.0f}, {standing[1]:.0f}"


def _told(what: str, measured: str) -> Figure:
    return told(_NAME, what, measured)


def _none(what: str, measured: int) -> Figure:
    return exactly(_NAME, what, 0, measured)


def _counted(counter: "collections.Counter[str]") -> str:
    return ", ".join(f"{what} {count}" for what, count in sorted(counter.items()))
