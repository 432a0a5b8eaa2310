"""Results: ranks, leaders, bracket and usage of a job from its heats' verdicts. Pure, without torch."""

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from bestofn.judge.bracket import Match, knockout
from bestofn.judge.calibration import probability
from bestofn.judge.verdict import Verdict, rank
from bestofn.service.core.errors import JobUnreadable
from bestofn.service.core.finals import FinalsOutcome, entrants, reordered
from bestofn.service.core.jobs import ACTIVE, Candidate, HeatOutcome, JobSpec, JobStatus, Revision, Usage
from bestofn.service.core.schemas import (
    CandidateOut,
    FinalsOut,
    ImageOut,
    JobProgress,
    JobResult,
    MatchOut,
    UsageOut,
    VerdictOut,
)

ALL_UNSAFE = "the image checker refused every candidate as unsafe: change the prompt, or try another seed"
"""Why a job failed whose candidates are all unsafe; also in `lua/common.lua`."""

JUDGING = frozenset(
    {"prompt", "num_samples", "top_k", "finals", "rule", "priority", "heat_size", "deadline_seconds", "thumbnails"}
)
"""Parameters of a job whose images were sent: the others are of their drawing."""


def name_of(spec: JobSpec, candidate: int) -> str | None:
    """File name of a candidate's image, if the caller sent it under one."""
    return (spec.sent[candidate].name or None) if spec.sent else None


def shown(
    spec: JobSpec, candidate: Candidate, rank: int = 1, *, thumbnail: bool = False, base: str = ""
) -> CandidateOut:
    """A candidate as answers show it, with the address of its thumbnail if it has one."""
    return CandidateOut(
        index=candidate.index,
        seed=candidate.seed,
        name=name_of(spec, candidate.index),
        verdict=VerdictOut.of(candidate.verdict),
        rank=rank,
        solved_in_full=candidate.solved_in_full,
        draft=VerdictOut.of(candidate.draft) if candidate.draft is not None else None,
        thumbnail=f"{base}/jobs/{spec.id}/thumbnails/{candidate.index}" if thumbnail else None,
    )


def ranked(spec: JobSpec, candidates: Iterable[Candidate]) -> list[Candidate]:
    """Candidates best first. The order of the input has no effect: ties are broken by candidate index.

    Candidates with a draft only come after all others.
    """
    by_index = sorted(candidates, key=lambda candidate: candidate.index)
    fields = [
        [candidate for candidate in by_index if candidate.solved_in_full is solved_in_full]
        for solved_in_full in (True, False)
    ]
    return [field[place] for field in fields for place in rank([candidate.verdict for candidate in field], spec.rule)]


def promoted(spec: JobSpec, drafts: Mapping[int, Verdict]) -> list[int]:
    """Indices of a heat's candidates that are solved in full, given the verdicts on all its drafts."""
    indices = sorted(drafts)
    order = rank([drafts[index] for index in indices], spec.rule)
    return sorted(indices[place] for place in order[: spec.schedule.promoted(len(indices))])


def best_of(spec: JobSpec, candidates: Iterable[Candidate]) -> list[Candidate]:
    """The candidates in play among these, best first: at most `num_images_kept`, all solved in full and none unsafe."""
    return [candidate for candidate in ranked(spec, candidates)[: spec.num_images_kept] if candidate.has_image]


def leaders(spec: JobSpec, candidates: Iterable[Candidate]) -> list[int]:
    """Indices of the candidates in play, best first: those whose images are kept."""
    return [candidate.index for candidate in best_of(spec, candidates)]


@dataclass(frozen=True)
class Ranking:
    """Ranks of the judged candidates of a job: what all pages of its result have in common.

    Attributes:
        by_verdict: candidates, best first by their verdicts.
        order: candidates, best first after the finals.
        places: candidates in index order, each with its place in `order`.
        usage: work of all finished heats; None if there is none.
        warnings: warnings of all finished heats.
        unusable: number of candidates without a usable verdict, but for unsafe ones.
        unsafe: number of candidates that the image checker refused.
    """

    by_verdict: tuple[Candidate, ...]
    order: tuple[Candidate, ...]
    places: Sequence[tuple[int, Candidate]]
    usage: Usage | None
    warnings: tuple[str, ...]
    unusable: int
    unsafe: int

    @classmethod
    def of(cls, spec: JobSpec, outcomes: Collection[HeatOutcome], finals: FinalsOutcome | None = None) -> "Ranking":
        """Rank the candidates of finished heats, in any order."""
        by_verdict = ranked(spec, (candidate for outcome in outcomes for candidate in outcome.candidates))
        order = tuple(by_verdict if finals is None else reordered(by_verdict, finals))
        return cls(
            by_verdict=tuple(by_verdict),
            order=order,
            places=sorted(enumerate(order), key=lambda entry: entry[1].index),
            usage=sum((outcome.usage for outcome in outcomes), Usage()) if outcomes else None,
            warnings=tuple(dict.fromkeys(text for outcome in outcomes for text in outcome.warnings)),
            unusable=sum(not (candidate.verdict.usable or candidate.verdict.unsafe) for candidate in by_verdict),
            unsafe=sum(candidate.verdict.unsafe for candidate in by_verdict),
        )

    @cached_property
    def rounds(self) -> Sequence[Sequence[Match]]:
        """Rounds of the knockout by verdicts among the candidates solved in full."""
        indices = [candidate.index for candidate in self.by_verdict if candidate.solved_in_full]
        return knockout(sorted(indices), indices).rounds if indices else ()


def unreadable(job: str, error: JobUnreadable) -> JobResult:
    """The little that is known of a job that cannot be read. Raises `error` if that job has images."""
    if error.job_status not in (*ACTIVE, JobStatus.FAILED, JobStatus.CANCELED):
        raise error
    unknown = Revision(name="unknown", revision="unknown")
    return JobResult(
        id=job,
        status=JobStatus(error.job_status),
        prompt="",
        bracket=[],
        parameters={},
        warnings=[error.detail],
        error=error.job_error,
        model=unknown,
        judge=unknown,
    )


def assemble(
    spec: JobSpec,
    status: JobStatus,
    outcomes: Sequence[HeatOutcome],
    *,
    error: str | None = None,
    stopped: str | None = None,
    progress: JobProgress | None = None,
    thumbnails: Collection[int] = (),
    discarded_forwards: int = 0,
    finals: FinalsOutcome | None = None,
    ranking: Ranking | None = None,
    offset: int = 0,
    limit: int | None = None,
    base: str = "",
) -> JobResult:
    """The result of a job from its finished heats, in any order, or one page of it.

    A page has the candidates and matches number `offset` to `offset + limit - 1`, and the url of the next page, if any.
    Matches are numbered round after round. Every page lists all rounds, most of them empty, so that a reader appends
    round r of each page to its round r. N candidates play at most N - 1 matches and byes a round, so matches may need
    a page or so more than candidates.

    A job that has not succeeded shows its verdicts so far and no images, because its ranks may still change.

    Args:
        spec: the job.
        status: its status.
        outcomes: finished heats.
        error: reason of a failure.
        stopped: reason of an early end: its deadline or its stopping rule.
        progress: progress of a job that waits or runs.
        thumbnails: candidates with a thumbnail.
        discarded_forwards: transformer forwards for candidates that the end left out.
        finals: result of the finals; the bracket remains that of the verdicts.
        ranking: ranks of these outcomes, if they are known; then `outcomes` is not read.
        offset: first candidate and match of the page.
        limit: candidates and matches of the page; None: all.
        base: public address of the API, before every path; "": addresses are relative to the server.
    """
    ranking = ranking or Ranking.of(spec, outcomes, finals)
    by_verdict, order = ranking.by_verdict, ranking.order
    end = sys.maxsize if limit is None else offset + limit
    succeeded = status is JobStatus.SUCCEEDED
    rounds = ranking.rounds if succeeded else ()
    warnings = [*spec.warnings, *ranking.warnings]
    if ranking.unusable:
        warnings.append(
            f"the judge gave {ranking.unusable} of {len(order)} candidates no usable verdict (neither yes nor no, or "
            "not finite); they rank last"
        )
    if ranking.unsafe:
        warnings.append(f"the image checker refused {ranking.unsafe} of {len(order)} candidates as unsafe")
    if succeeded and stopped == "deadline":
        warnings.append(
            f"the deadline of {spec.deadline_seconds:g} s passed with {len(order)} of {spec.num_samples} candidates "
            "judged; these are the best of them"
        )
        if finals is None and entrants(spec, by_verdict):
            warnings.append(
                "the finals were not played: the deadline passed before; the ranks are those of the verdicts"
            )
    warnings += finals.warnings if finals else ()
    uncalibrated = [revision.name for revision, calibration in spec.judges if calibration is None]
    if succeeded and spec.stop is not None and order:
        warnings += (
            f"judge {name} is not calibrated: `confidence` is its own probability, which may be too high; "
            "`bestofn calibrate` fits it on labelled images"
            for name in uncalibrated
        )
    further: dict[str, Any] = {
        "discarded_forwards": discarded_forwards,
        "pairwise_calls": finals.calls if finals else 0,
    }
    decides_alone = len(spec.judges) == 1
    unsaid = {"id", "model", "judge", "second_judge", "warnings", "plan", "sent"}
    unsaid |= {"second_calibration"} if decides_alone else set()
    parameters = spec.model_dump(mode="json", include=set(JUDGING) if spec.sent else None, exclude=unsaid)
    return JobResult(
        id=spec.id,
        status=status,
        prompt=spec.prompt,
        images=_images(spec, order, base) if succeeded else [],
        bracket=_bracket(rounds, offset, end),
        finals=FinalsOut.model_validate(finals.to_json()) if succeeded and finals and finals.rounds else None,
        candidates=[
            shown(spec, one, place + 1, thumbnail=one.index in thumbnails, base=base)
            for place, one in ranking.places[offset:end]
        ],
        next=f"{base}/jobs/{spec.id}?offset={end}&limit={limit}"
        if end < max(len(order), sum(map(len, rounds)))
        else None,
        unsafe=ranking.unsafe,
        usage=None if ranking.usage is None else UsageOut(**asdict(ranking.usage), **further),
        progress=progress,
        complete=succeeded and stopped != "deadline",
        stopped=stopped,
        confidence=probability(order[0].verdict, spec.calibration) if succeeded and spec.stop else None,
        calibrated=not uncalibrated if succeeded and spec.stop is not None else None,
        warnings=list(dict.fromkeys(warnings)),
        error=error,
        plan=spec.plan,
        parameters=parameters,
        model=spec.model,
        judge=spec.judge,
        second_judge=None if decides_alone else spec.second_judge,
    )


def _images(spec: JobSpec, order: Sequence[Candidate], base: str) -> list[ImageOut]:
    return [
        ImageOut(
            rank=place + 1,
            candidate=candidate.index,
            seed=candidate.seed,
            name=name_of(spec, candidate.index),
            verdict=VerdictOut.of(candidate.verdict),
            url=f"{base}/jobs/{spec.id}/images/{place + 1}",
        )
        for place, candidate in enumerate(order[: spec.top_k])
        if candidate.has_image
    ]


def _bracket(rounds: Iterable[Sequence[Match]], offset: int, end: int) -> list[list[MatchOut]]:
    shown, number = [], 0
    for matches in rounds:
        part = matches[max(0, offset - number) : max(0, end - number)]
        shown.append([MatchOut(a=match.a, b=match.b, winner=match.winner) for match in part])
        number += len(matches)
    return shown
