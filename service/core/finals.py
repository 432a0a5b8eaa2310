"""Finals of a job: the entrants of the pairwise judge's knockout, and the ranks after it. Pure.

The heats' judge orders its leaders only up to some noise. Candidates within it meet in a knockout by the operator's
pairwise judge, which compares two images at a time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bestofn.judge.pairwise import Rounds, ranking, read_rounds
from bestofn.judge.verdict import Verdict
from bestofn.service.core.jobs import Candidate, JobSpec


@dataclass(frozen=True, slots=True)
class FinalsOutcome:
    """Result of the finals.

    Attributes:
        judge: model name of the pairwise judge.
        rounds: rounds of the knockout; empty if it was not played.
        warnings: sentences for the user.
    """

    judge: str
    rounds: Rounds = ()
    warnings: tuple[str, ...] = ()

    @property
    def calls(self) -> int:
        """Number of the judge's answers: two a match."""
        return sum(len(match.answers) for matches in self.rounds for match in matches)

    def to_json(self) -> dict[str, Any]:
        """`{"judge": "name", "rounds": [[{"a": 0, "b": 1, "answers": [0, 0], "winner": 0}]], "warnings": []}`."""
        rounds = [[match.to_json() for match in matches] for matches in self.rounds]
        return {"judge": self.judge, "rounds": rounds, "warnings": list(self.warnings)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "FinalsOutcome":
        """Reads what `to_json` wrote."""
        return cls(fields["judge"], read_rounds(fields["rounds"]), tuple(fields["warnings"]))


def played(judge: str, rounds: Rounds) -> FinalsOutcome:
    """The result of a played knockout, with a warning if the judge named neither image in some answers."""
    outcome = FinalsOutcome(judge, rounds)
    silent = sum(answer is None for matches in rounds for match in matches for answer in match.answers)
    if not silent:
        return outcome
    said = f"the pairwise judge {judge} named neither image in {silent} of {outcome.calls} answers"
    return FinalsOutcome(judge, rounds, (said,))


def not_played(judge: str, reason: str) -> FinalsOutcome:
    """The result of finals that were not played; `reason` is a clause for the user."""
    return FinalsOutcome(judge, (), (f"the finals were not played: {reason}; the ranks are those of the verdicts",))


def entrants(spec: JobSpec, order: Sequence[Candidate]) -> list[Candidate]:
    """Candidates of the finals, best first; empty if the leader has no rival.

    Args:
        spec: a job whose heats are completed.
        order: its best candidates, best first; at least `finals.max_entrants` of them if the job has as many.
    """
    if spec.finals is None or not order:
        return []
    least = (
        _odds(order[0].verdict) - spec.finals.margin
    )  # NaN if the leader's verdict is broken: no candidate reaches it
    entering = [
        candidate
        for candidate in order[: spec.finals.max_entrants]
        if candidate.solved_in_full and candidate.verdict.usable and _odds(candidate.verdict) >= least
    ]
    return entering if len(entering) > 1 else []


def _odds(verdict: Verdict) -> float:
    """Log-odds by which the verdict ranks; NaN if it is broken."""
    return verdict.margin if verdict.bound is None else verdict.bound


def reordered(order: Sequence[Candidate], finals: FinalsOutcome) -> list[Candidate]:
    """Candidates best first after the finals: the entrants keep their places as a group, in the finals' order."""
    if not finals.rounds:
        return list(order)
    known = {candidate.index: candidate for candidate in order}
    met = {one for match in finals.rounds[0] for one in (match.a, match.b)}
    before = [candidate.index for candidate in order if candidate.index in met]
    after = iter(ranking(before, finals.rounds))
    return [known[next(after)] if candidate.index in met else candidate for candidate in order]
