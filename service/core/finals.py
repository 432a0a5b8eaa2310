"""The finals of a job: who meets whom once all heats are done, and what that changes in the ranks. Pure.

The judge of the heats knows its leaders' order only to within some noise. Those within it meet in a knockout by the
operator's pairwise judge, which sees two pictures at a time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bestofn.judge.pairwise import Rounds, ranking, read_rounds
from bestofn.judge.verdict import Verdict
from bestofn.service.core.jobs import Candidate, JobSpec


@dataclass(frozen=True, slots=True)
class FinalsOutcome:
    """What finals came to.

    Attributes:
        judge: the model that was asked.
        rounds: of the knockout; empty if it was not played.
        warnings: sentences for the user.
    """

    judge: str
    rounds: Rounds = ()
    warnings: tuple[str, ...] = ()

    @property
    def calls(self) -> int:
        """Answers of the judge: two a match."""
        return sum(len(match.answers) for matches in self.rounds for match in matches)

    def to_json(self) -> dict[str, Any]:
        """`{"judge": "name", "rounds": [[{"a": 0, "b": 1, "answers": [0, 0], "winner": 0}]], "warnings": []}`."""
        rounds = [[match.to_json() for match in matches] for matches in self.rounds]
        return {"judge": self.judge, "rounds": rounds, "warnings": list(self.warnings)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "FinalsOutcome":
        """Reads what `to_json` wrote."""
        return cls(fields["judge"], read_rounds(fields["rounds"]), tuple(fields["warnings"]))


@dataclass(frozen=True, slots=True)
class FinalsState:
    """Finals that are being played: a state, so that whoever plays them anew tells it anew.

    Attributes:
        judge: the model that is asked.
        entrants: who meets, best first by verdict.
        rounds: those that are played.
    """

    judge: str
    entrants: tuple[int, ...]
    rounds: Rounds = ()

    def to_json(self) -> dict[str, Any]:
        """`{"judge": "name", "entrants": [0, 1], "rounds": []}`."""
        rounds = [[match.to_json() for match in matches] for matches in self.rounds]
        return {"judge": self.judge, "entrants": list(self.entrants), "rounds": rounds}


def played(judge: str, rounds: Rounds) -> FinalsOutcome:
    """Finals that were played, with a warning where the judge named neither picture."""
    outcome = FinalsOutcome(judge, rounds)
    silent = sum(answer is None for matches in rounds for match in matches for answer in match.answers)
    if not silent:
        return outcome
    said = f"the pairwise judge {judge} named neither picture in {silent} of {outcome.calls} answers"
    return FinalsOutcome(judge, rounds, (said,))


def not_played(judge: str, reason: str) -> FinalsOutcome:
    """Finals that were not played; `reason` is a clause for the user."""
    return FinalsOutcome(judge, (), (f"the finals were not played: {reason}; the ranks are those of the verdicts",))


def entrants(spec: JobSpec, order: Sequence[Candidate]) -> list[Candidate]:
    """Who meets in the finals, best first; nobody if the leader is alone.

    Args:
        spec: of a job whose heats are done.
        order: its best candidates, best first, at least `finals.max_entrants` if there are so many (`result.ranked`).
    """
    if spec.finals is None or not order:
        return []
    least = _odds(order[0].verdict) - spec.finals.margin  # NaN, which nothing reaches, if the leader has no numbers
    meet = [
        candidate
        for candidate in order[: spec.finals.max_entrants]
        if candidate.solved_in_full and candidate.verdict.usable and _odds(candidate.verdict) >= least
    ]
    return meet if len(meet) > 1 else []


def _odds(verdict: Verdict) -> float:
    """Log-odds by which the verdict ranks; NaN if it is broken."""
    return verdict.margin if verdict.bound is None else verdict.bound


def reordered(order: Sequence[Candidate], finals: FinalsOutcome | None) -> list[Candidate]:
    """Candidates best first after the finals: their entrants share out the places that they had among them."""
    if finals is None or not finals.rounds:
        return list(order)
    known = {candidate.index: candidate for candidate in order}
    met = {one for match in finals.rounds[0] for one in (match.a, match.b)}
    before = [candidate.index for candidate in order if candidate.index in met]
    after = iter(ranking(before, finals.rounds))
    return [known[next(after)] if candidate.index in met else candidate for candidate in order]
