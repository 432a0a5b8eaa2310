"""Findings, and the order in which they are made: a check that breaks or hangs is a finding and stops no other."""

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from bestofn.service.core.settings import Settings

State = Literal["ok", "warn", "fail"]
PATIENCE_SECONDS = 60.0  # for a check; loading torch on a busy machine takes half of it

# A password in an address: between the scheme's slashes and the last @ before the path, or a parameter of its own.
_PASSWORD = re.compile(r"(?<=://)[^/\s@]*:[^/\s]*(?=@)|(?<=password=)[^&\s]+")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, how it is, and what to change where it should be otherwise."""

    state: State
    what: str
    found: str
    fix: str = ""


Check = Callable[[Settings], Iterator[Finding]]


def examine(
    settings: Settings, checks: Mapping[str, Check], names: Iterable[str] | None = None, patience: float | None = None
) -> Iterator[tuple[str, Finding]]:
    """(check, finding) of these checks, or of all. Neither passwords and keys nor the home folder's name are in them.

    Args:
        settings: what is examined.
        checks: by name; each yields its findings.
        names: of those to make; all if None.
        patience: seconds that one check may take.
    """
    hide = hiding(settings)
    for name in checks if names is None else names:
        for finding in _findings(name, checks[name], settings, PATIENCE_SECONDS if patience is None else patience):
            yield name, replace(finding, found=hide(finding.found), fix=hide(finding.fix))


def hiding(settings: Settings) -> Callable[[str], str]:
    """A function that takes passwords, keys and the home folder's name out of a text."""
    home = str(Path.home())

    def hide(text: str) -> str:
        for key in (
            settings.api_key,
            settings.pairwise_api_key,
            settings.judge_api_key,
            settings.checker_api_key,
        ):
            if key:
                text = text.replace(key, "***")
        text = _PASSWORD.sub("***", text)
        return re.sub(rf"{re.escape(home)}(?=[/\s,;:)'\"]|$)", "~", text) if len(home) > 1 else text

    return hide


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
