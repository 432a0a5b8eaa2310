"""A job of `bestofn generate`: where it runs, and its run on a server or in this process without server and queue."""

import asyncio
from collections.abc import Mapping
from typing import Any

from bestofn.cli.output import Outcome
from bestofn.cli.progress_bar import JobBar
from bestofn.judge.verdict import Rule
from bestofn.service.client.client import Client
from bestofn.service.client.discovery import running_server
from bestofn.service.client.events import Progress
from bestofn.service.core.errors import InvalidRequest, JobFailed, SetupError
from bestofn.service.core.jobs import JobStatus
from bestofn.service.core.schemas import GenerateRequest
from bestofn.service.core.settings import Settings
from bestofn.service.host.packages import can_draw_here
from bestofn.service.pairwise.check_server import prompt_checker


def choose(settings: Settings, *, local: bool) -> str | None:
    """The address of the server to use, or None to draw in this process.

    The one that was named (--server, BESTOFN_SERVER), else a running `bestofn up`, else this process.

    Raises:
        SetupError: there is no server, and drawing here needs packages that are not installed.
    """
    server = None if local else settings.server or running_server(settings)
    if server is None and not can_draw_here():
        raise SetupError(
            "no server was named and none is running, and drawing here needs the worker's packages: "
            "pass --server URL, run `bestofn up`, or pip install 'bestofn[worker]'"
        )
    return server


def draw_there(request: Mapping[str, Any], server: str, settings: Settings) -> Outcome:
    """Submit to a server, follow and fetch. A job that is interrupted here is cancelled there.

    Raises:
        BestOfNError: what the server refused, or how the job ended if it did not succeed.
    """
    with Client(server, settings.api_key) as client:
        with JobBar() as bar:
            generation = client.generate(**request, on_progress=bar.show)
        shown = [candidate.index for candidate in generation.candidates if candidate.thumbnail is not None]
        thumbnails = {index: client.thumbnail(generation.result.id, index) for index in shown}
        return Outcome(generation.result, [winner.data for winner in generation.images], thumbnails)


def draw_here(request: Mapping[str, Any], settings: Settings) -> Outcome:
    """Load the models of the settings, draw, judge. Ctrl-C cancels.

    Raises:
        ValidationError: what is wrong with the request.
        BestOfNError: what is wrong with the checkpoints, or why the job failed.
        KeyboardInterrupt: Ctrl-C came.
    """
    checked = GenerateRequest.model_validate(request)
    if checked.rule is not Rule.LOWER_BOUND:
        settings = settings.model_copy(update={"second_judge": None})  # this job does not use it
    elif not settings.second_judge:
        raise InvalidRequest("rule lower_bound needs a second judge: name one with --second-judge", field="rule")
    if checked.finals and not settings.pairwise_judge:
        raise InvalidRequest("finals need a pairwise judge: name one in BESTOFN_PAIRWISE_JUDGE", field="finals")
    if (checker := prompt_checker(settings)) is not None:
        asyncio.run(checker.check_prompt(checked.prompt))
    with JobBar() as bar:
        # Imported here, since torch takes seconds, and everything before can fail without it.
        from bestofn.service.engine.loader import load_engine
        from bestofn.service.pairwise.openai_judge import VisionJudge
        from bestofn.service.worker.local import local_spec, run_local

        named = settings.pairwise_judge if checked.finals else None
        judge = VisionJudge(named, settings.pairwise_api_key) if named else None
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
