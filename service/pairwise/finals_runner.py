"""Playing a job's finals: the pairwise judge is asked; if it cannot be, the verdicts' order stays, with a warning."""

from collections.abc import Awaitable, Callable, Mapping, Sequence

import structlog

from bestofn.judge.pairwise import Rounds
from bestofn.service.core.errors import JudgeAway
from bestofn.service.core.finals import FinalsOutcome, FinalsState, not_played, played
from bestofn.service.core.jobs import JobSpec
from bestofn.service.pairwise.openai_judge import VisionJudge

log = structlog.get_logger()


async def play(
    judge: VisionJudge,
    spec: JobSpec,
    meet: Sequence[int],
    images: Mapping[int, bytes],
    tell: Callable[[FinalsState], Awaitable[None]],
    *,
    own: bool = False,
) -> FinalsOutcome:
    """The knockout among `meet` (best first, of `finals.entrants`), whose files' bytes are `images`.

    `tell` is awaited before each round, with what is played. `own`: whoever asked for the job has named the judge too,
    and is told what is wrong with it. Others are not told where it is: that goes to the log.
    """
    model = judge.address.model

    async def before_round(rounds: Rounds) -> None:
        await tell(FinalsState(model, tuple(meet), rounds))

    try:
        return played(model, await judge.knockout(spec.prompt, meet, images, before_round))
    except JudgeAway as error:
        if own:
            return not_played(model, error.detail)
        log.warning("finals not played", job=spec.id, error=error.quiet)
        return not_played(model, f"the pairwise judge {model} could not be asked")
    except ValueError as error:
        log.warning("finals not played", job=spec.id, error=str(error))
        return not_played(model, "an image of those who meet cannot be read")
