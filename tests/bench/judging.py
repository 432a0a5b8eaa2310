"""The judge: one forward a candidate, in batches, against the published procedure, which asks it twice a match with one
image each, 2(N - k) times. Both on the shapes judge and the same images; the published code's reading and writing
of files is left out."""

import statistics
import time
from collections.abc import Sequence
from functools import partial

import torch
from figures import Measured, Table, at_most

from bestofn.judge.bracket import script_sub_brackets
from bestofn.judge.judge import Judge
from bestofn.judge.verdict import Verdict, script_prefers_first
from bestofn.models.flops import TERA
from bestofn.models.generator import Generator
from bestofn.service.engine.batch_pool import BatchPool
from bestofn.service.engine.batch_sizes import sizes_for
from bestofn.service.host.cgroups import cores

PROMPT = "a photo of a red star left of a blue circle"


class _Asked:
    """A judge that counts the images it was asked about."""

    def __init__(self, judge: Judge, images: torch.Tensor) -> None:
        self._judge, self._images = judge, images
        self._asked: list[int] = []

    @property
    def forwards(self) -> int:
        return sum(self._asked)

    def verdicts(self, which: Sequence[int]) -> list[Verdict]:
        self._asked.append(len(which))
        return self._judge.judge([self._images[i].numpy() for i in which], [PROMPT] * len(which))


def measure(short: bool) -> Measured:
    """k = 1 and k = 4, in alternating order."""
    N, rounds = 32, 1 if short else 5
    generator, judge = Generator.load("shapes"), Judge.load()
    size = generator.defaults.width
    images = torch.randint(0, 256, (N, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    flops = generator.flops(size, size)
    sizes = sizes_for("cpu", tflops=flops.forward / TERA, cores=cores())
    batch = sizes.batch(sizes.judge, judge.flops(size, size) / TERA)
    side_by_side = BatchPool(sizes.parallel)
    shares = [range(start, min(N, start + batch)) for start in range(0, N, batch)]

    def ours(k: int) -> tuple[float, int, list[int]]:
        torch.set_num_threads(1 if sizes.parallel > 1 else cores())
        asked, begun = _Asked(judge, images), time.perf_counter()
        verdicts = [verdict for share in side_by_side.map(asked.verdicts, shares) for verdict in share]
        winners = [bracket.winner for bracket in script_sub_brackets(verdicts, k)]
        return time.perf_counter() - begun, asked.forwards, winners

    def published(k: int, threads: int) -> tuple[float, int, list[int]]:
        torch.set_num_threads(threads)
        asked, field, begun = _Asked(judge, images), list(range(N)), time.perf_counter()
        while len(field) > k:
            pairs = zip(field[::2], field[1::2], strict=True)
            field = [a if script_prefers_first(*(asked.verdicts([one])[0] for one in (a, b))) else b for a, b in pairs]
        return time.perf_counter() - begun, asked.forwards, field

    rows, figures = [], []
    for k in (1, 4):
        ways = {
            "bestofn": partial(ours, k),
            "published, one thread": partial(published, k, 1),
            "published, all cores": partial(published, k, cores()),
        }
        runs: dict[str, list[tuple[float, int, list[int]]]] = {name: [] for name in ways}
        for name in ways:
            ways[name]()
        for number in range(rounds):
            for name in list(ways) if number % 2 == 0 else reversed(ways):
                runs[name].append(ways[name]())
        seconds = {name: statistics.median(run[0] for run in made) for name, made in runs.items()}
        faster, theirs = min((seconds[name], runs[name][0]) for name in list(ways)[1:])
        for name, made in runs.items():
            rows.append((N, k, name, made[0][1], seconds[name], faster / seconds[name]))
        figures.append(at_most(f"forwards, k = {k}", runs["bestofn"][0][1], N))
        figures.append(at_most(f"winners that differ, k = {k}", len({*runs["bestofn"][0][2]} ^ {*theirs[2]}), 0))
    return Measured([Table(("N", "k", "way", "forwards", "s", "x of the faster published"), rows)], figures)
