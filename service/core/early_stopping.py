"""The decided prefix of a job that may stop: what its first heats have come to, whichever of them was done first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bestofn.judge.stopping import Reason, StoppingRule
from bestofn.service.core.jobs import Candidate, JobSpec
from bestofn.service.core.results import best_of


@dataclass(frozen=True, slots=True)
class Prefix:
    """Heats 0 to `heats` - 1 of a job, all of them finished.

    Attributes:
        heats: how many.
        leaders: their best, as many as are in play, best first.
        stopped: why the job ends with them; None: it goes on, or has no more.
    """

    heats: int = 0
    leaders: tuple[Candidate, ...] = ()
    stopped: Reason | None = None


def fold(spec: JobSpec, prefix: Prefix, finished: Mapping[int, Sequence[Candidate]]) -> Prefix:
    """The prefix with those finished heats that follow it without a gap, up to the first that ends the job."""
    while prefix.stopped is None and prefix.heats in finished:
        leaders = best_of(spec, [*prefix.leaders, *finished[prefix.heats]])
        heats = prefix.heats + 1
        prefix = Prefix(heats, tuple(leaders), enough(spec, heats, leaders))
    return prefix


def enough(spec: JobSpec, heats: int, leaders: Sequence[Candidate]) -> Reason | None:
    """Why the job ends with its first `heats` heats, whose best are these, or None; never with fewer than `top_k`."""
    if spec.stop is None or len(leaders) < spec.top_k:
        return None
    rule = StoppingRule(**spec.stop.model_dump(), calibration=spec.calibration)
    return rule.reason(spec.schedule.first(heats), leaders[0].verdict)


def candidates_in_play(spec: JobSpec, prefix: Prefix, finished: Mapping[int, Sequence[Candidate]]) -> set[int]:
    """Candidates who may still be in play at the end, by index: whose pictures are kept.

    A candidate beyond the prefix is out once `pictures` of its own heat and of finished ones before it are better.
    """
    kept, field = {candidate.index for candidate in prefix.leaders}, list(prefix.leaders)
    if prefix.stopped is None:
        for heat in sorted(heat for heat in finished if heat >= prefix.heats):
            field = best_of(spec, [*field, *finished[heat]])
            kept |= {candidate.index for candidate in field}
    return kept
