"""Running a job's finals with the pairwise judge; without its answers the verdicts' order holds, with a warning."""

from collections.abc import Awaitable, Callable, Mapping, Sequence

import structlog

from bestofn.judge.pairwise import Rounds
from bestofn.service.core.errors import JudgeAway
from bestofn.service.core.finals import FinalsOutcome, not_played, played
from bestofn.service.core.jobs import JobSpec
from bestofn.service.core.schemas import FinalsProgress
from bestofn.service.pairwise.openai_judge import VisionJudge

log = structlog.get_logger()


async def play(
    judge: VisionJudge,
    spec: JobSpec,
    entering: Sequence[int],
    images: Mapping[int, bytes],
    publish: Callable[[FinalsProgress], Awaitable[None]],
    *,
    own: bool = False,
) -> FinalsOutcome:
    """Run the knockout; if the judge fails, the result says so and the verdicts' order holds.

    Args:
        judge: the pairwise judge.
        spec: the job.
        entering: entrants, best first (`finals.entrants`).
        images: file bytes of their images.
        publish: awaited before each round, with the state of the finals.
        own: the job's caller has also chosen the judge, so that its errors may name the judge's address.
    """
    model = judge.address.model

    async def before_round(rounds: Rounds) -> None:
        played_so_far = [[match.to_json() for match in matches] for matches in rounds]
        await publish(FinalsProgress.model_validate({"judge": model, "entrants": entering, "rounds": played_so_far}))

    try:
        return played(model, await judge.knockout(spec.prompt, entering, images, before_round))
    except JudgeAway as error:
        if own:
            return not_played(model, error.detail)
        log.warning("finals not played", job=spec.id, error=error.quiet)
        return not_played(model, f"the pairwise judge {model} could not be asked")
    except ValueError as error:
        log.warning("finals not played", job=spec.id, error=str(error))
        return not_played(model, "an image of the entrants cannot be read")
