"""Codec of the queue's records: finished heats, jobs, verdicts and events."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from bestofn.judge.verdict import ANSWERS, Verdict
from bestofn.service.core import jobs
from bestofn.service.core.errors import JobUnreadable
from bestofn.service.core.finals import FinalsOutcome
from bestofn.service.core.jobs import Candidate, HeatOutcome, JobSpec, JobStatus, Usage
from bestofn.service.core.results import Ranking, shown
from bestofn.service.core.schemas import FinalsProgress, JobProgress
from bestofn.service.core.workers import WorkerInfo

ENDINGS = frozenset({"result", "failed", "canceled"})  # types of a job's last event


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Raise JobUnreadable for any error of stored text in this block: garbage, cut off, or of another version.

    The reason never quotes the text, which may be a prompt.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = type(error).__name__
        if isinstance(error, ValidationError):
            first = error.errors(include_input=False, include_url=False)[0]
            reason = ": ".join([*map(str, first["loc"]), first["type"]])
        raise JobUnreadable(f"{what} cannot be read by this version ({reason})") from error


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a job. `id` is its position in the job's stream: a client resumes after it.

    type       data
    queued     {}
    started    {}
    progress   {"judged", "num_samples", "steps", "total_steps", "transformer_forwards"}; the last one only is kept
    candidate  {"index", "seed", "verdict"}, with drafts also {"draft", "solved_in_full"}: promoted ones come twice
    heat       {"heat", "num_heats"}, of jobs that may stop also "decided": heats in the prefix from now on
    finals     {"judge", "entrants", "rounds"}: state of the finals before each round; repeated if they are repeated
    result     {"status"}            the job has succeeded
    failed     {"status", "error"}
    canceled   {"status"}
    """

    id: str
    type: str
    data: dict[str, Any]

    @classmethod
    @reading("an event of the job")
    def read(cls, entry: bytes, fields: Mapping[bytes, bytes]) -> "Event":
        """An entry of the job's stream. Raises JobUnreadable."""
        return cls(entry.decode(), fields[b"type"].decode(), json.loads(fields[b"data"]))


@dataclass(frozen=True)
class JobRecord:
    """A job at one moment: arguments of `assemble`, by their names."""

    spec: JobSpec
    status: JobStatus
    error: str | None
    stopped: str | None  # reason of an early end
    outcomes: tuple[HeatOutcome, ...]  # finished heats by index, without image bytes
    progress: JobProgress
    thumbnails: frozenset[int]  # candidates with a thumbnail
    discarded_forwards: int  # forwards for candidates that an early end left out
    finals: FinalsOutcome | None
    ranking: Ranking  # ranks of `outcomes`


@dataclass(frozen=True, slots=True)
class QueuePosition:
    """Position of a waiting job in the ring (1 is next) and the seconds until it starts."""

    position: int | None = None
    estimated_wait_seconds: float | None = None


@reading("the job's stored form")
def read_spec(text: str | bytes | None) -> JobSpec:
    """A stored specification. Raises JobUnreadable."""
    fields = json.loads(text or b"")
    return JobSpec.model_validate({"schema_version": 0, **fields})


def without_prompt(text: bytes) -> str:
    """A stored specification without its prompts and warnings, for a canceled job; "" if it cannot be read."""
    try:
        spec = read_spec(text)
    except JobUnreadable:
        return ""
    nameless = tuple(image.model_copy(update={"name": ""}) for image in spec.sent)
    forgotten = {"prompt": "", "negative_prompt": "", "warnings": (), "sent": nameless}
    return spec.model_copy(update=forgotten).model_dump_json()


def read_workers(texts: Iterable[str | bytes]) -> list[WorkerInfo]:
    """Announcements of workers that run jobs of this version."""
    found = []
    for text in texts:
        with suppress(ValueError):  # garbage, or of another version; a ValidationError is one
            fields = json.loads(text)
            if isinstance(fields, dict) and fields.get("schema_version", 0) == jobs.SCHEMA_VERSION:
                found.append(WorkerInfo.model_validate(fields))
    return found


@dataclass(frozen=True, slots=True)
class DecodedHeats:
    """The decoded heats of one job so far.

    Attributes:
        text: stored form of `spec`.
        spec: the job.
        outcomes: finished heats by index, without image bytes.
        finals: result of the finals.
        ranking: ranks of all their candidates.
    """

    text: bytes
    spec: JobSpec
    outcomes: Mapping[int, HeatOutcome]
    finals: FinalsOutcome | None
    ranking: Ranking

    @property
    def heats(self) -> list[int]:
        """Indices of the decoded records; the finals' comes last."""
        return [*self.outcomes, *([self.spec.schedule.num_heats] if self.finals is not None else [])]


@reading("the job's stored record")
def decode_heats(
    text: bytes | None, heats: Mapping[bytes, bytes], before: DecodedHeats | None = None, *, bracket: bool = False
) -> DecodedHeats:
    """Decode heats of a job.

    Args:
        text: stored form of its specification.
        heats: records of completed heats by heat; the finals' record comes last.
        before: heats of the same job that are decoded already.
        bracket: compute the knockout too, as pages of the result need it.

    Raises:
        JobUnreadable: one of them cannot be read.
    """
    spec = before.spec if before is not None else read_spec(text)
    last = spec.schedule.num_heats
    new = {heat: unpack_heat(spec, heat, heats[b"%d" % heat]) for heat in map(int, heats) if heat != last}
    outcomes = dict(sorted({**(before.outcomes if before is not None else {}), **new}.items()))
    finals = before.finals if before is not None else None
    if b"%d" % last in heats:
        finals = unpack_finals(heats[b"%d" % last])
    ranking = Ranking.of(spec, tuple(outcomes.values()), finals)
    if bracket:
        _ = ranking.rounds  # computed here, which may be off the event loop
    return DecodedHeats(text or b"", spec, outcomes, finals, ranking)


@reading("the job's stored record")
def read_record(fields: Mapping[bytes, bytes], heats: DecodedHeats) -> JobRecord:
    """The record of a job, without its queue position, from its hash and its heats. Raises JobUnreadable."""
    spec, ranking = heats.spec, heats.ranking
    status = JobStatus(fields[b"status"].decode())
    state = fields.get(b"finals_state") if status is JobStatus.RUNNING else None
    safe = (c.index for c in ranking.order if not c.verdict.unsafe)
    thumbnails = filter(spec.has_thumbnail, safe) if spec.thumbnails else ()
    return JobRecord(
        spec,
        status,
        fields[b"error"].decode() if b"error" in fields else None,
        fields[b"stopped"].decode() if b"stopped" in fields else None,
        tuple(heats.outcomes.values()),
        JobProgress(
            judged=int(fields[b"judged"]),
            num_samples=spec.num_samples,
            steps=int(fields[b"steps"]),
            total_steps=int(fields[b"total_steps"]),
            transformer_forwards=int(fields[b"forwards"]),
            best=shown(spec, ranking.by_verdict[0]) if ranking.by_verdict else None,
            finals=None if state is None else FinalsProgress.model_validate_json(state),
        ),
        frozenset(thumbnails),
        int(fields.get(b"discarded", 0)),
        heats.finals,
        ranking,
    )


def pack_heat(outcome: HeatOutcome) -> str:
    """A finished heat without its images, as compact JSON of less than 100 bytes a candidate."""
    verdicts = [candidate.verdict for candidate in outcome.candidates]
    # In jobs with drafts: the promoted candidates with their draft verdicts. The others have no other verdict.
    promoted = {c.index: _verdict(c.draft) for c in outcome.candidates if c.solved_in_full and c.draft is not None}
    # With two judges: the second verdict and the bound of candidates solved in full.
    seconds = {c.index: _verdict(c.verdict)[3:] for c in outcome.candidates if c.verdict.second is not None}
    usage = outcome.usage
    return _compact(
        {
            "first": outcome.candidates[0].index,
            "answers": "".join(verdict.answer[0] for verdict in verdicts),
            "yes": [verdict.yes_logit for verdict in verdicts],
            "no": [verdict.no_logit for verdict in verdicts],
            "usage": [
                usage.candidates,
                usage.transformer_forwards,
                usage.judge_forwards,
                usage.tflops,
                {stage: round(seconds, 6) for stage, seconds in usage.seconds.items()},
            ],
            "warnings": outcome.warnings,
            **({"promoted": promoted} if promoted else {}),
            **({"seconds": seconds} if seconds else {}),
        }
    )


@reading("a stored result of the job")
def unpack_heat(spec: JobSpec, heat: int, record: str | bytes) -> HeatOutcome:
    """Reads what `pack_heat` wrote; logits come back bit by bit. Raises JobUnreadable."""
    fields = json.loads(record)
    answers = {answer[0]: answer for answer in ANSWERS}
    judged = zip(fields["answers"], fields["yes"], fields["no"], strict=True)
    drafts = {int(index): read_verdict(draft) for index, draft in fields.get("promoted", {}).items()}
    seconds = {int(index): both for index, both in fields.get("seconds", {}).items()}
    candidates = []
    for index, (letter, yes, no) in enumerate(judged, fields["first"]):
        verdict = read_verdict([answers[letter], yes, no, *seconds.get(index, ())])
        draft = None if spec.draft is None else drafts.get(index, verdict)
        candidates.append(Candidate(index, spec.seed_of(index), verdict, draft, spec.draft is None or index in drafts))
    return HeatOutcome(heat, tuple(candidates), {}, Usage(*fields["usage"]), warnings=tuple(fields["warnings"]))


def pack_finals(finals: FinalsOutcome) -> str:
    """The result of finals, as JSON."""
    return _compact(finals.to_json())


@reading("the stored finals of the job")
def unpack_finals(record: str | bytes) -> FinalsOutcome:
    return FinalsOutcome.from_json(json.loads(record))


def pack_leaders(leaders: Sequence[Candidate]) -> str:
    """Candidates with their verdicts, best first, as JSON for `unpack_leaders`."""
    return _compact([[c.index, *_verdict(c.verdict)] for c in leaders])


@reading("the stored leaders of the job")
def unpack_leaders(spec: JobSpec, leaders: str | bytes) -> list[Candidate]:
    return [Candidate(i, spec.seed_of(i), read_verdict(verdict)) for i, *verdict in json.loads(leaders)]


def pack_candidate(candidate: Candidate) -> str:
    """The data of a `candidate` event."""
    draft = None if candidate.draft is None else candidate.draft.to_json()
    drafted = {} if draft is None else {"draft": draft, "solved_in_full": candidate.solved_in_full}
    verdict = candidate.verdict.to_json()
    return _compact({"index": candidate.index, "seed": candidate.seed, "verdict": verdict, **drafted})


def read_verdict(fields: Sequence[Any]) -> Verdict:
    """A verdict in the form of `pack_leaders`: answer, logits and, with two judges, second verdict and bound."""
    answer, yes, no, *both = fields
    return Verdict(answer, yes, no, read_verdict(both[0]), both[1]) if both else Verdict(answer, yes, no)


def _verdict(verdict: Verdict) -> list[Any]:
    own = [verdict.answer, verdict.yes_logit, verdict.no_logit]
    return own if verdict.second is None else [*own, _verdict(verdict.second), verdict.bound]


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
