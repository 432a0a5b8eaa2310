"""Translation of stored events into the events that readers get. Pure: without I/O."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bestofn.judge.bracket import Decided, LiveKnockout
from bestofn.judge.verdict import Verdict
from bestofn.service.core.jobs import Candidate, JobSpec
from bestofn.service.core.results import ranked, shown
from bestofn.service.core.schemas import CandidateOut
from bestofn.service.queue.codec import Event


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One event of the wire. `id` is what a reader sends back to resume after it; None: it does not count.

    type       data
    queued     {"job", "position", "estimated_wait_seconds"}; again, without id, when one of them changes
    started    {}
    progress   {"judged", "num_samples", "steps", "total_steps", "transformer_forwards", "best"}
    candidate  {"index", "seed", "verdict", "solved_in_full", "draft", "thumbnail"}; promoted ones come twice
    match      {"round", "place", "a", "b", "winner"}: `bracket[round][place]` of the result
    finals     {"judge", "entrants", "rounds"}: state of the finals before each round; repeated if they are repeated
    snapshot   the whole job, where events were lost: a reader starts again from it (without id)
    result     the result, or its first page
    problem    a problem document: the job failed, was cancelled, or has expired under its reader
    """

    type: str
    data: dict[str, Any]
    id: str | None = None


Place = tuple[int, int, int]  # milliseconds and number of a stored event, and the index of the event made from it


def place_of(event_id: str | None) -> Place | None:
    """The place in a job's stream that an id names; None for none, or one that is none of ours."""
    entry, _, number = (event_id or "").partition(".")
    parts = [*entry.split("-"), number]
    if len(parts) != 3 or not all(part.isascii() and part.isdecimal() and len(part) < 20 for part in parts):
        return None
    milliseconds, sequence, translated = map(int, parts)
    return milliseconds, sequence, translated


class EventTranslator:
    """Translates a job's stored events, one by one and in their order.


    The translation depends on the stored events alone, so that all readers get the same events under the same ids. A
    candidate that two workers judged, because one lost its lease, gives one event.
    """

    def __init__(self, spec: JobSpec, base: str = "") -> None:
        """`base` is the public address of the API; "": addresses are relative to the server."""
        self._spec = spec
        self._base = base
        self._decided = 0  # heats whose matches were sent, of a job that may stop
        # With drafts, promoted candidates are not known beforehand: their knockout comes with the result.
        self._knockout = None if spec.draft else LiveKnockout(spec.num_samples, spec.rule)
        self._known: dict[int, Candidate] = {}
        self.best: Candidate | None = None  # best candidate judged so far

    def translate(self, event: Event) -> Iterator[StreamEvent]:
        """The reader's events for a stored event; none for the job's end, whose result the caller adds."""
        match event.type:
            case "queued":
                translated = [("queued", {"job": self._spec.id})]  # the caller adds its position
            case "started":
                translated = [("started", {})]
            case "progress":
                best = None if self.best is None else self._shown(self.best).model_dump(mode="json")
                translated = [("progress", event.data | {"best": best})]
            case "candidate":
                candidate = _candidate(event.data)
                if self._note([candidate]):
                    data = self._shown(candidate).model_dump(mode="json", exclude={"rank"})
                    translated = [("candidate", data), *self._matches(candidate)]
                else:
                    translated = []
            case "finals":
                translated = [("finals", event.data)]
            case "heat" if "decided" in event.data:
                translated = self._decide(event.data["decided"])
            case _:
                translated = []
        for number, (type, data) in enumerate(translated):
            yield StreamEvent(type, data, f"{event.id}.{number}")

    def catch_up(self, candidates: Iterable[Candidate]) -> list[StreamEvent]:
        """The matches that these candidates decide, who are known from a snapshot."""
        noted = self._note(candidates)
        return [StreamEvent(type, data) for candidate in noted for type, data in self._matches(candidate)]

    @property
    def judged(self) -> int:
        """Candidates judged so far."""
        return len(self._known)

    def missed(self, event: Event) -> bool:
        """Whether a completed heat has candidates without an event: the reader was too slow for the stream."""
        return event.type == "heat" and not self._known.keys() >= set(self._spec.heat(event.data["heat"]).candidates)

    def _note(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Take the verdicts of those that are not known already, and return these."""
        noted = []
        for candidate in candidates:
            known = self._known.get(candidate.index)
            if known is None or (candidate.solved_in_full and not known.solved_in_full):
                self._known[candidate.index] = candidate
                noted.append(candidate)
        if noted:
            rivals = {one.index: one for one in ([self.best] if self.best else []) + noted}
            self.best = ranked(self._spec, rivals.values())[0]
        return noted

    def _matches(self, candidate: Candidate) -> list[tuple[str, dict[str, Any]]]:
        """The matches that a candidate decides; later, once its heat belongs to the prefix, of a job that may stop."""
        return [] if self._spec.stop else self._play(candidate)

    def _decide(self, heats: int) -> list[tuple[str, dict[str, Any]]]:
        """The matches within the first `heats` heats that were not sent yet."""
        decided = range(self._spec.schedule.first(self._decided), self._spec.schedule.first(heats))
        self._decided = heats
        return [
            translated for index in decided if index in self._known for translated in self._play(self._known[index])
        ]

    def _play(self, candidate: Candidate) -> list[tuple[str, dict[str, Any]]]:
        decided = self._knockout.judge(candidate.index, candidate.verdict) if self._knockout else []
        return [("match", _match(match)) for match in decided]

    def _shown(self, candidate: Candidate) -> CandidateOut:
        small = self._spec.has_thumbnail(candidate.index) and not candidate.verdict.unsafe
        return shown(self._spec, candidate, thumbnail=small, base=self._base)


def _candidate(data: Mapping[str, Any]) -> Candidate:
    draft = Verdict.from_json(data["draft"]) if "draft" in data else None
    return Candidate(
        data["index"], data["seed"], Verdict.from_json(data["verdict"]), draft, bool(data.get("solved_in_full", True))
    )


def _match(decided: Decided) -> dict[str, Any]:
    match = decided.match
    return {"round": decided.round, "place": decided.place, "a": match.a, "b": match.b, "winner": match.winner}
