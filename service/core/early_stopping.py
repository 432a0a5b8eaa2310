"""Early stopping: the decided prefix of a job's heats, in index order whatever the order of completion."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bestofn.judge.stopping import Reason, StoppingRule
from bestofn.service.core.finals import entrants
from bestofn.service.core.jobs import Candidate, HeatOutcome, JobSpec
from bestofn.service.core.results import best_of


@dataclass(frozen=True, slots=True)
class Prefix:
    """Heats 0 to `heats` - 1 of a job, all of them finished.

    Attributes:
        heats: number of heats.
        leaders: candidates in play, best first.
        stopped: reason to end the job here; None: none.
    """

    heats: int = 0
    leaders: tuple[Candidate, ...] = ()
    stopped: Reason | None = None


def fold(spec: JobSpec, prefix: Prefix, finished: Mapping[int, Sequence[Candidate]]) -> Prefix:
    """Extend the prefix by the finished heats that follow it without a gap, up to the first that ends the job."""
    while prefix.stopped is None and prefix.heats in finished:
        leaders = best_of(spec, [*prefix.leaders, *finished[prefix.heats]])
        heats = prefix.heats + 1
        prefix = Prefix(heats, tuple(leaders), enough(spec, heats, leaders))
    return prefix


def enough(spec: JobSpec, heats: int, leaders: Sequence[Candidate]) -> Reason | None:
    """Reason to end the job after `heats` heats with these leaders, or None. Never with fewer than `top_k` leaders."""
    if spec.stop is None or len(leaders) < spec.top_k:
        return None
    rule = StoppingRule(**spec.stop.model_dump(), calibration=spec.calibration)
    return rule.reason(spec.schedule.first(heats), leaders[0].verdict)


def candidates_in_play(spec: JobSpec, prefix: Prefix, finished: Mapping[int, Sequence[Candidate]]) -> set[int]:
    """Indices of candidates that may still win, whose images are kept.

    A candidate beyond the prefix is out once `num_images_kept` candidates of its own and earlier heats are better.
    """
    kept, field = {candidate.index for candidate in prefix.leaders}, list(prefix.leaders)
    if prefix.stopped is None:
        for heat in sorted(heat for heat in finished if heat >= prefix.heats):
            field = best_of(spec, [*field, *finished[heat]])
            kept |= {candidate.index for candidate in field}
    return kept


@dataclass(frozen=True, slots=True)
class Decision:
    """What the completion of a heat means for its job.

    Attributes:
        prefix: decided prefix and leaders from now on.
        in_play: indices of candidates whose images are kept.
        finals: whether this was the last heat and finals follow.
    """

    prefix: Prefix
    in_play: set[int]
    finals: bool


def decide(
    spec: JobSpec, before: Prefix, outcome: HeatOutcome, finished: Mapping[int, Sequence[Candidate]], num_done: int
) -> Decision:
    """The decision after a heat.

    Args:
        spec: the job.
        before: prefix and leaders before this heat.
        outcome: the completed heat.
        finished: completed heats beyond the prefix, for jobs that may stop.
        num_done: number of completed heats before this one.
    """
    if spec.stop is None:  # without early stopping the order of completion has no effect
        after = replace(before, leaders=tuple(best_of(spec, [*before.leaders, *outcome.candidates])))
        in_play = {candidate.index for candidate in after.leaders}
    else:
        known = {**finished, outcome.heat: outcome.candidates}
        after = fold(spec, before, known)
        in_play = candidates_in_play(spec, after, known)
    last = after.stopped is not None or num_done + 1 == spec.schedule.num_heats
    finals = last and bool(entrants(spec, after.leaders))
    if last and not finals:
        in_play = {candidate.index for candidate in after.leaders[: spec.top_k]}
    return Decision(after, in_play, finals)
