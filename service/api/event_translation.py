"""The events of a job as its readers see them: told from what the queue has stored, pure and without I/O."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bestofn.judge.bracket import Decided, LiveKnockout
from bestofn.judge.verdict import Verdict
from bestofn.service.core.jobs import Candidate, JobSpec
from bestofn.service.core.results import ranked
from bestofn.service.core.schemas import CandidateOut, VerdictOut
from bestofn.service.queue.codec import Event


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One event of the wire. `id` is what a reader sends back to resume after it; None: it does not count.

    type       data
    queued     {"job", "position", "estimated_wait_seconds"}; again, without id, when one of them changes
    started    {}
    progress   {"judged", "num_samples", "steps", "total_steps", "transformer_forwards", "best"}
    candidate  {"index", "seed", "verdict", "solved_in_full", "draft", "thumbnail"}; with drafts, finalists come twice
    match      {"round", "place", "a", "b", "winner"}: `bracket[round][place]` of the result
    finals     {"judge", "entrants", "rounds"}: the finals as they stand, before each round; anew if played anew
    snapshot   the job as it stands, where events were lost: a reader starts afresh from it (without id)
    result     the result, or its first page
    error      a problem document: the job failed, was cancelled, or has expired under its reader
    """

    type: str
    data: dict[str, Any]
    id: str | None = None


Place = tuple[int, int, int]  # milliseconds and number of a stored event, and which of those that were told from it


def place_of(event_id: str | None) -> Place | None:
    """The place in a job's stream that an id names; None for none, or one that is none of ours."""
    entry, _, number = (event_id or "").partition(".")
    parts = [*entry.split("-"), number]
    if len(parts) != 3 or not all(part.isascii() and part.isdecimal() and len(part) < 20 for part in parts):
        return None
    milliseconds, sequence, told = map(int, parts)
    return milliseconds, sequence, told


class EventTranslator:
    """Tells a job's events one by one, from its stored ones in their order.

    What is told depends on those alone, so that every reader is told the same under the same ids. A candidate that two
    workers judged, because one lost its lease, is told once.
    """

    def __init__(self, spec: JobSpec) -> None:
        self._spec = spec
        self._decided = 0  # heats of which the matches were told, of a job that may stop
        # Who will be a finalist is not known before: with drafts, the knockout is told with the result.
        self._knockout = None if spec.draft else LiveKnockout(spec.num_samples, spec.rule)
        self._known: dict[int, Candidate] = {}
        self._best: Candidate | None = None

    def tell(self, event: Event) -> Iterator[JobEvent]:
        """What a stored event means to readers; nothing for the job's end, whose result is told by who has it."""
        match event.type:
            case "queued":
                told = [("queued", {"job": self._spec.id})]  # where it stands now is told by who asks
            case "started":
                told = [("started", {})]
            case "progress":
                told = [("progress", event.data | {"best": self._leader()})]
            case "candidate":
                told = self._judge(_candidate(event.data))
            case "finals":
                told = [("finals", event.data)]
            case "heat" if "decided" in event.data:
                told = self._decide(event.data["decided"])
            case _:
                told = []
        for number, (type, data) in enumerate(told):
            yield JobEvent(type, data, f"{event.id}.{number}")

    def catch_up(self, candidates: Iterable[Candidate]) -> list[JobEvent]:
        """The matches that these candidates decide, who are known from a snapshot."""
        return [
            JobEvent(type, data)
            for candidate in candidates
            for type, data in self._judge(candidate)
            if type != "candidate"
        ]

    def missed(self, event: Event) -> bool:
        """Whether a heat is done of which not every candidate was told: the reader was too slow for the stream."""
        return event.type == "heat" and not self._known.keys() >= set(self._spec.heat(event.data["heat"]).candidates)

    def _judge(self, candidate: Candidate) -> list[tuple[str, dict[str, Any]]]:
        known = self._known.get(candidate.index)
        if known is not None and (known.solved_in_full or not candidate.solved_in_full):
            return []
        self._known[candidate.index] = candidate
        rival = self._best if self._best and self._best.index != candidate.index else None
        self._best = ranked(self._spec, [candidate, *([rival] if rival else [])])[0]
        data = self._shown(candidate).model_dump(mode="json", exclude={"rank"})
        # A job that may stop may end without this candidate: its matches are told once its heat belongs to the prefix.
        return [("candidate", data), *([] if self._spec.stop else self._play(candidate))]

    def _decide(self, heats: int) -> list[tuple[str, dict[str, Any]]]:
        """The matches within the first `heats` heats that were not told yet."""
        decided = range(self._spec.schedule.first(self._decided), self._spec.schedule.first(heats))
        self._decided = heats
        return [told for index in decided if index in self._known for told in self._play(self._known[index])]

    def _play(self, candidate: Candidate) -> list[tuple[str, dict[str, Any]]]:
        decided = self._knockout.judge(candidate.index, candidate.verdict) if self._knockout else []
        return [("match", _match(match)) for match in decided]

    def _leader(self) -> dict[str, Any] | None:
        return None if self._best is None else self._shown(self._best).model_dump(mode="json")

    def _shown(self, candidate: Candidate) -> CandidateOut:
        small = f"/jobs/{self._spec.id}/thumbnails/{candidate.index}"
        return CandidateOut(
            index=candidate.index,
            seed=candidate.seed,
            verdict=VerdictOut.of(candidate.verdict),
            rank=1,
            solved_in_full=candidate.solved_in_full,
            draft=VerdictOut.of(candidate.draft) if candidate.draft is not None else None,
            thumbnail=small if self._spec.has_thumbnail(candidate.index) else None,
        )


def _candidate(data: Mapping[str, Any]) -> Candidate:
    draft = Verdict.from_json(data["draft"]) if "draft" in data else None
    return Candidate(
        data["index"], data["seed"], Verdict.from_json(data["verdict"]), draft, bool(data.get("solved_in_full", True))
    )


def _match(decided: Decided) -> dict[str, Any]:
    match = decided.match
    return {"round": decided.round, "place": decided.place, "a": match.a, "b": match.b, "winner": match.winner}
