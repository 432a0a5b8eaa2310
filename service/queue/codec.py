"""What the queue stores and returns: the record of a finished heat, of a job, and its events."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bestofn.judge.verdict import ANSWERS, Verdict
from bestofn.service.core.finals import FinalsOutcome, FinalsState
from bestofn.service.core.jobs import Candidate, HeatOutcome, JobSpec, JobStatus, Usage
from bestofn.service.core.results import ranked
from bestofn.service.core.schemas import CandidateOut, JobProgress, VerdictOut

ENDINGS = frozenset({"result", "failed", "canceled"})  # types of a job's last event


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a job. `id` is its place in the job's stream: what a client sends back to resume after it.

    type       data
    queued     {}
    started    {}
    progress   {"judged", "num_samples", "steps", "total_steps", "transformer_forwards"}; the last one only is kept
    candidate  {"index", "seed", "verdict"}, in jobs with drafts also {"draft", "solved_in_full"}: a promoted candidate comes twice
    heat       {"heat", "num_heats"}, of jobs that may stop also "decided": heats in the prefix from now on
    finals     {"judge", "entrants", "rounds"}: the finals as they stand, before each round; anew if played anew
    result     {"status"}            the job has succeeded
    failed     {"status", "error"}
    canceled   {"status"}
    """

    id: str
    type: str
    data: dict[str, Any]

    @classmethod
    def read(cls, entry: bytes, fields: Mapping[bytes, bytes]) -> "Event":
        """An entry of the job's stream."""
        return cls(entry.decode(), fields[b"type"].decode(), json.loads(fields[b"data"]))


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job at one moment. Times are Unix times of the queue server."""

    spec: JobSpec
    status: JobStatus
    error: str | None
    stopped: str | None  # why it ended, if not because all candidates were judged
    outcomes: tuple[HeatOutcome, ...]  # of finished heats by index, without image bytes
    progress: JobProgress
    created: float
    started: float | None
    ended: float | None
    thumbnails: frozenset[int] = frozenset()  # candidates of which there is one
    discarded_forwards: int = 0  # for candidates that the end has left out
    finals: FinalsOutcome | None = None


@dataclass(frozen=True, slots=True)
class QueuePosition:
    """Where a job stands that waits: its place in the ring, 1 is next, and the time until it starts."""

    position: int | None = None
    estimated_wait_seconds: float | None = None


def pack_heat(outcome: HeatOutcome) -> str:
    """A finished heat without its pictures, as compact JSON of less than 100 bytes a candidate."""
    verdicts = [candidate.verdict for candidate in outcome.candidates]
    # In jobs with drafts: who was solved in full, with the draft's verdict; the others have no other than that.
    promoted = {c.index: _verdict(c.draft) for c in outcome.candidates if c.solved_in_full and c.draft is not None}
    # In jobs that two judges decide: the second one's verdict on those who were solved in full, and the bound of both.
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


def unpack_heat(spec: JobSpec, heat: int, record: str | bytes) -> HeatOutcome:
    """Reads what `pack_heat` wrote; logits come back bit by bit."""
    fields = json.loads(record)
    answers = {answer[0]: answer for answer in ANSWERS}
    judged = zip(fields["answers"], fields["yes"], fields["no"], strict=True)
    drafts = {int(index): read_verdict(draft) for index, draft in fields.get("promoted", {}).items()}
    seconds = {int(index): both for index, both in fields.get("seconds", {}).items()}
    candidates = []
    for index, (letter, yes, no) in enumerate(judged, fields["first"]):
        verdict = read_verdict([answers[letter], yes, no, *seconds.get(index, ())])
        draft = None if spec.draft is None else drafts.get(index, verdict)
        candidates.append(Candidate(index, spec.seed + index, verdict, draft, spec.draft is None or index in drafts))
    return HeatOutcome(heat, tuple(candidates), {}, Usage(*fields["usage"]), warnings=tuple(fields["warnings"]))


def pack_finals(finals: FinalsOutcome | FinalsState) -> str:
    """What finals came to, as JSON that `unpack_finals` reads, or how far they are."""
    return _compact(finals.to_json())


def unpack_finals(record: str | bytes) -> FinalsOutcome:
    return FinalsOutcome.from_json(json.loads(record))


def pack_leaders(leaders: Sequence[Candidate]) -> str:
    """Candidates with their verdicts, best first, as JSON that only `unpack_leaders` reads."""
    return _compact([[c.index, *_verdict(c.verdict)] for c in leaders])


def unpack_leaders(spec: JobSpec, leaders: str | bytes) -> list[Candidate]:
    return [Candidate(i, spec.seed + i, read_verdict(verdict)) for i, *verdict in json.loads(leaders)]


def pack_candidate(candidate: Candidate) -> str:
    """The data of a `candidate` event."""
    draft = None if candidate.draft is None else candidate.draft.to_json()
    drafted = {} if draft is None else {"draft": draft, "solved_in_full": candidate.solved_in_full}
    verdict = candidate.verdict.to_json()
    return _compact({"index": candidate.index, "seed": candidate.seed, "verdict": verdict, **drafted})


def best(spec: JobSpec, outcomes: Iterable[HeatOutcome]) -> CandidateOut | None:
    """The leader among the candidates of finished heats."""
    order = ranked(spec, (candidate for outcome in outcomes for candidate in outcome.candidates))
    if not order:
        return None
    return CandidateOut(
        index=order[0].index, seed=order[0].seed, verdict=VerdictOut.of(order[0].verdict), rank=1, thumbnail=None
    )


def read_verdict(fields: Sequence[Any]) -> Verdict:
    """A verdict as `pack_leaders` writes it: answer and logits, and of two judges the second verdict and the bound."""
    answer, yes, no, *both = fields
    return Verdict(answer, yes, no, read_verdict(both[0]), both[1]) if both else Verdict(answer, yes, no)


def _verdict(verdict: Verdict) -> list[Any]:
    own = [verdict.answer, verdict.yes_logit, verdict.no_logit]
    return own if verdict.second is None else [*own, _verdict(verdict.second), verdict.bound]


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
