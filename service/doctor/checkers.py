"""Checks of the safety checkers: whether each that is set gives an answer."""

from collections.abc import Iterator

from bestofn.service.core.errors import SetupError
from bestofn.service.core.settings import Settings
from bestofn.service.doctor.checkpoints import image_checkers
from bestofn.service.doctor.findings import Finding
from bestofn.service.host.packages import can_draw_here
from bestofn.service.pairwise.calls import run_call, web_address
from bestofn.service.pairwise.check_server import PROMPT_SECONDS, CheckServer

PROMPT = "a red circle"


def checkers(settings: Settings) -> Iterator[Finding]:
    """The checkers of prompts and images; one line where there is none."""
    if not (settings.prompt_checker or settings.image_checker):
        yield Finding("ok", "safety", "neither prompts nor images are checked")
    for what, name in (("prompt checker", settings.prompt_checker), ("image checker", settings.image_checker)):
        if not name:
            continue
        try:
            if what == "prompt checker":
                server = CheckServer(name, what, settings.checker_api_key)
                unsafe = run_call(server.unsafe({"prompt": PROMPT}, PROMPT_SECONDS))
                found = f"{name} calls {PROMPT!r} {'unsafe' if unsafe else 'safe'}"
            elif web_address(name) is not None:
                found = f"{name}, {run_call(CheckServer(name, what, settings.checker_api_key).revision())}"
            else:
                if can_draw_here():
                    yield from _labels(settings)
                continue
        except (SetupError, TimeoutError) as error:
            yield Finding("fail", what, str(error) or f"{name} does not answer", "prompts and images wait for it")
        else:
            yield Finding("ok", what, found)


def _labels(settings: Settings) -> Iterator[Finding]:
    """The labels of a classifier that count as unsafe."""
    from bestofn.judge.classifier import unsafe_labels
    from bestofn.judge.loader import JudgeFolderError

    for place in image_checkers(settings):
        if place.path is None or place.broken:
            continue
        try:
            yield Finding("ok", "image checker", f"refuses {', '.join(unsafe_labels(place.path).values())}")
        except JudgeFolderError as error:
            yield Finding("fail", "image checker", str(error), "a worker with these settings would not start")
