"""Playing a job's finals: the pairwise judge is asked; if it is away, the verdicts' order stays, with a warning."""

from collections.abc import Mapping, Sequence

import structlog

from bestofn.service.errors import JudgeAway
from bestofn.service.finals import FinalsOutcome, not_played, played
from bestofn.service.jobs import JobSpec
from bestofn.service.vision_judge import VisionJudge

log = structlog.get_logger()


async def play(judge: VisionJudge, spec: JobSpec, meet: Sequence[int], pictures: Mapping[int, bytes]) -> FinalsOutcome:
    """The knockout among `meet` (best first, of `finals.entrants`), whose files' bytes are `pictures`.

    Whoever asked for the job reads the warnings, and is not told where the judge is: that goes to the log.
    """
    model = judge.address.model
    try:
        return played(model, await judge.knockout(spec.prompt, meet, pictures))
    except JudgeAway as error:
        log.warning("finals not played", job=spec.id, error=error.detail)
        return not_played(model, f"the pairwise judge {model} could not be asked")
