"""Findings, and the order in which they are made: a check that breaks or hangs is a finding and stops no other."""

import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from bestofn.service.core.settings import Settings

State = Literal["ok", "warn", "fail"]
GIB = 2**30
PATIENCE_SECONDS = 60.0  # for a check; loading torch on a busy machine takes half of it

# A password in an address: between the scheme's slashes and the last @ before the path, or a parameter of its own.
_QUEUE = r"(?:(?<=redis://)|(?<=rediss://)|(?<=sentinel://))\S*(?=@)"  # a password may have / ? and # by mistake
_PASSWORD = re.compile(rf"{_QUEUE}|(?<=://)[^/\s@]*:[^/\s]*(?=@)|(?<=password=)[^&\s]+")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, how it is, and what to change where it should be otherwise."""

    state: State
    what: str
    found: str
    fix: str = ""


Check = Callable[[Settings], Iterator[Finding]]


def examine(
    settings: Settings, checks: Mapping[str, Check], patience: float = PATIENCE_SECONDS
) -> Iterator[tuple[str, Finding]]:
    """(check, finding) of all checks, each within `patience` seconds.

    Neither passwords and keys nor the home folder's name are in them.
    """
    for name, check in checks.items():
        for finding in _findings(name, check, settings, patience):
            yield name, replace(finding, found=_hidden(finding.found, settings), fix=_hidden(finding.fix, settings))


def _hidden(text: str, settings: Settings) -> str:
    """The text without passwords, keys and the home folder's name."""
    keys = settings.api_key, settings.pairwise_api_key, settings.judge_api_key, settings.checker_api_key
    for key in filter(None, keys):
        text = text.replace(key, "***")
    text, home = _PASSWORD.sub("***", text), os.path.expanduser("~")
    return re.sub(rf"{re.escape(home)}(?=[/\s,;:)'\"]|$)", "~", text) if len(home) > 1 else text


def _findings(name: str, check: Check, settings: Settings, patience: float) -> list[Finding]:
    made: list[Finding] = []

    def work() -> None:
        try:
            made.extend(check(settings))
        except Exception as error:  # whatever is wrong belongs into the report
            made.append(Finding("fail", name, " ".join(f"{type(error).__name__}: {error}".split())))

    # A thread that hangs in a driver cannot be stopped; as a daemon it ends with the program.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(patience)
    if thread.is_alive():
        return [*made, Finding("fail", name, f"no answer within {patience:g} s", "see what blocks it, and ask again")]
    return made
