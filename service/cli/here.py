"""A job in this process, without server and queue."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from bestofn.judge.verdict import Rule
from bestofn.service.cli.outcome import Outcome
from bestofn.service.cli.progress import JobBar
from bestofn.service.client.progress import Progress
from bestofn.service.errors import InvalidRequest, JobFailed
from bestofn.service.jobs import JobStatus
from bestofn.service.schemas import GenerateRequest
from bestofn.service.settings import Settings


def generate(request: Mapping[str, Any], settings: Settings) -> Outcome:
    """Load the models of the settings, draw, judge. Ctrl-C cancels.

    Raises:
        BestOfNError: what is wrong with the request or the checkpoints, or why the job failed.
        KeyboardInterrupt: Ctrl-C came.
    """
    try:
        checked = GenerateRequest.model_validate(request)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise InvalidRequest(f"{field}: {first['msg']}", field=field) from error
    if checked.rule is not Rule.LOWER_BOUND:
        settings = settings.model_copy(update={"second_judge": None})  # nobody would ask it
    elif not settings.second_judge:
        raise InvalidRequest("rule lower_bound needs a second judge: name one with --second-judge", field="rule")
    if checked.finals and not settings.finals_judge:
        raise InvalidRequest("finals need a pairwise judge: name one in BESTOFN_FINALS_JUDGE", field="finals")
    with JobBar() as bar:
        # Imported here, since torch takes seconds, and everything before can fail without it.
        from bestofn.service.load import load_engine
        from bestofn.service.local import local_spec, run_local
        from bestofn.service.vision_judge import VisionJudge

        named = settings.finals_judge if checked.finals else None
        judge = VisionJudge(named, settings.finals_key) if named else None
        engine = load_engine(settings)
        run = run_local(
            local_spec(checked, engine, settings), engine, lambda running: bar.show(Progress.of(running)), judge
        )
    result = run.result
    if result.status is JobStatus.FAILED:
        raise JobFailed(f"the job failed: {result.error}")
    if result.status is JobStatus.CANCELED:
        raise KeyboardInterrupt
    images = [image.model_copy(update={"url": None}) for image in result.images]
    candidates = [candidate.model_copy(update={"thumbnail": None}) for candidate in result.candidates]
    result = result.model_copy(update={"images": images, "candidates": candidates})
    return Outcome(result, [run.images[image.candidate] for image in images], run.thumbnails)
