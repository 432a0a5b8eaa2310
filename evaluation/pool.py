"""The pool of an evaluation: prompts x seeds x steps -> verdict and evaluator's word, a line a chunk, resumable.

All strategies are replayed from one pool, and so see the same candidates. What a file holds is never drawn again.
"""

import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bestofn.evaluation.stats import Floats
from bestofn.evaluation.tasks import Task, benchmark, digest
from bestofn.judge.verdict import Verdict

CHUNK = 32
DIGITS = 3  # decimals of a stored logit


@dataclass(frozen=True)
class Source:
    """What draws and judges: checkpoints on this machine, with their revisions, and the prompts; and where.

    Attributes:
        lora: LoRAs of the generator, as BESTOFN_LORA names them; `model_revision` counts them in.
        latents: folder that keeps final latents, so that another judge's pool is filled without denoising; or None.
    """

    model: str
    model_revision: str
    judge: str
    judge_revision: str
    tasks: tuple[Task, ...]
    device: str = "cpu"
    latents: Path | None = None
    lora: str = ""

    @property
    def identity(self) -> dict[str, str]:
        """What verdicts and images depend on, wherever the folders lie."""
        return {"model": self.model_revision, "judge": self.judge_revision, "prompts": digest(self.tasks)}


@dataclass(frozen=True)
class SamplingConfig:
    """How a candidate is sampled: number of steps or, for a preview, the model's prediction after `after` steps."""

    steps: int
    after: int | None = None

    def __str__(self) -> str:
        return f"{self.steps} steps" if self.after is None else f"{self.steps} steps, seen after {self.after}"


@dataclass(frozen=True)
class SampleRequest:
    """Candidates to have: the first `samples` of each of these prompts, by number."""

    config: SamplingConfig
    samples: int
    prompts: Sequence[int]

    def chunks(self) -> Iterator["ChunkKey"]:
        starts = range(0, self.samples, CHUNK)
        return (ChunkKey(number, self.config, start) for start in starts for number in self.prompts)


@dataclass(frozen=True)
class ChunkKey:
    """Where a chunk belongs: `CHUNK` candidates of one prompt from candidate `start` on."""

    number: int
    config: SamplingConfig
    start: int


@dataclass(frozen=True)
class Chunk:
    """Verdicts and the evaluator's word, in seed order; `correct` is empty where there is no evaluator."""

    correct: list[int]
    yes: list[float]
    no: list[float]


@dataclass(frozen=True)
class Samples:
    """Candidates of P prompts, S of each.

    Attributes:
        numbers: (P,), of the prompts.
        correct: (P, S), 1 where the evaluator accepts the image; NaN where there is none.
        yes, no: (P, S), the judge's logits.
        yes_above: log-odds above which the judge answers yes.
    """

    numbers: list[int]
    correct: Floats
    yes: Floats
    no: Floats
    yes_above: float = 0.0

    @property
    def margin(self) -> Floats:
        """(P, S), the log-odds of yes, by which the judge ranks."""
        return self.yes - self.no

    @cached_property
    def verdicts(self) -> list[list[Verdict]]:
        """(P, S), as the judge gave them."""
        rows = zip(self.yes.tolist(), self.no.tolist(), strict=True)
        return [
            [Verdict("yes" if yes - no > self.yes_above else "no", yes, no) for yes, no in zip(*row, strict=True)]
            for row in rows
        ]

    def of(self, numbers: Sequence[int], samples: int) -> "Samples":
        """Fewer prompts, fewer samples; itself, if these are all."""
        if list(numbers) == self.numbers and samples == self.yes.shape[1]:
            return self
        rows = [self.numbers.index(number) for number in numbers]
        correct, yes, no = (values[rows, :samples] for values in (self.correct, self.yes, self.no))
        return Samples(list(numbers), correct, yes, no, self.yes_above)


def filled_from(path: Path) -> dict[str, str]:
    """Identity of the source that a pool's file was filled from; empty where there is no such file."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8") as file:
        identity: dict[str, str] = json.loads(file.readline() or "{}")
    return identity


class Pool:
    """The chunks of a file."""

    def __init__(self, path: Path, source: Source, yes_above: float | None = 0.0) -> None:
        """
        Args:
            path: the file; made with its first chunk.
            source: what draws and judges.
            yes_above: log-odds above which the judge answers yes; None: not known, and replays take 0 as workers do.

        Raises:
            ValueError: the file was filled from another source.
        """
        self.path, self.source, self.yes_above = path, source, yes_above
        self.chunks: dict[SamplingConfig, dict[int, dict[int, Chunk]]] = defaultdict(lambda: defaultdict(dict))
        self._tables: dict[tuple[SamplingConfig, int], Samples] = {}
        if path.is_file() and path.stat().st_size:
            self._read()

    @classmethod
    def of_benchmark(cls, path: Path) -> "Pool":
        """The pool of the benchmark in a file that is there, as it was filled, wherever its checkpoints lie."""
        identity = filled_from(path)
        return cls(path, Source("", identity["model"], "", identity["judge"], benchmark()))

    def _read(self) -> None:
        lines = self.path.read_text(encoding="utf-8").splitlines()
        if (identity := filled_from(self.path)) != self.source.identity:
            raise ValueError(
                f"{self.path} was filled from {identity}, not from {self.source.identity}: choose another --out"
            )
        for line in lines[1:]:
            try:
                key, chunk = _parse(json.loads(line))
            except ValueError:  # the last line of a run that was cut off
                os.truncate(self.path, self.path.read_bytes().rfind(b"\n") + 1)
                return
            if math.isfinite(sum(chunk.yes) + sum(chunk.no)):  # earlier versions kept missing verdicts, as NaN
                self._keep(key, chunk)

    def _keep(self, key: ChunkKey, chunk: Chunk) -> None:
        self.chunks[key.config][key.number][key.start] = chunk
        self._tables.clear()

    def missing(self, requests: Sequence[SampleRequest]) -> list[ChunkKey]:
        """Chunks that are wanted and not here, in the order of the wants."""
        places = dict.fromkeys(key for request in requests for key in request.chunks())
        return [key for key in places if key.start not in self.chunks[key.config][key.number]]

    def append(self, key: ChunkKey, chunk: Chunk) -> None:
        """Keep a chunk, here and in the file."""
        if not self.path.is_file() or not self.path.stat().st_size:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.source.identity) + "\n", encoding="utf-8")
        self._keep(key, chunk)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(key, chunk) + "\n")

    def counts(self) -> dict[SamplingConfig, int]:
        """Candidates in the file."""
        return {config: CHUNK * sum(map(len, chunks.values())) for config, chunks in self.chunks.items() if chunks}

    def tags(self, prompts: Sequence[int]) -> list[str]:
        """Categories of prompts by their numbers."""
        return [self.source.tasks[number].tag for number in prompts]

    def prompts(self, config: SamplingConfig, samples: int) -> list[int]:
        """Numbers of the prompts with at least `samples` samples of this config."""
        starts = set(range(0, samples, CHUNK))
        return sorted(number for number, chunks in self.chunks[config].items() if starts <= chunks.keys())

    def depth(self, config: SamplingConfig, prompts: Sequence[int]) -> int:
        """How many samples the file has of each of these prompts."""
        chunks = self.chunks[config]
        return min((_run(chunks[number]) for number in prompts), default=0)

    def samples(self, config: SamplingConfig, samples: int) -> Samples:
        """The first `samples` of every prompt that has as many, sampled with this config; kept for the next call."""
        if (config, samples) not in self._tables:
            self._tables[config, samples] = self._table(config, samples)
        return self._tables[config, samples]

    def _table(self, config: SamplingConfig, samples: int) -> Samples:
        numbers = self.prompts(config, samples)

        def table(rows: Callable[[Chunk], Sequence[float]]) -> Floats:
            return np.array(
                [
                    [value for start in range(0, samples, CHUNK) for value in rows(self.chunks[config][number][start])]
                    for number in numbers
                ],
                np.float64,
            ).reshape(len(numbers), -1)[:, :samples]

        return Samples(
            numbers,
            table(lambda chunk: chunk.correct or [float("nan")] * CHUNK),
            table(lambda chunk: chunk.yes),
            table(lambda chunk: chunk.no),
            self.yes_above or 0.0,
        )


def _run(chunks: Mapping[int, Chunk]) -> int:
    """Samples without a gap from the first on."""
    start = 0
    while start in chunks:
        start += CHUNK
    return start


def _line(key: ChunkKey, chunk: Chunk) -> str:
    after = {} if key.config.after is None else {"after": key.config.after}
    return json.dumps(
        {
            "prompt": key.number,
            "steps": key.config.steps,
            **after,
            "start": key.start,
            "correct": "".join(map(str, chunk.correct)),
            "yes": chunk.yes,
            "no": chunk.no,
        },
        allow_nan=False,
        separators=(",", ":"),
    )


def _parse(line: dict[str, Any]) -> tuple[ChunkKey, Chunk]:
    config = SamplingConfig(line["steps"], line.get("after"))
    return ChunkKey(line["prompt"], config, line["start"]), Chunk(
        [int(c) for c in line["correct"]], line["yes"], line["no"]
    )
