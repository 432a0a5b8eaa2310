"""Several processes that make one service: started together, restarted when one dies, stopped together."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import FrameType

from bestofn.cli.console import say
from bestofn.service.core.errors import SetupError
from bestofn.service.host.child_processes import end_with_parent, stop

POLL_SECONDS = 0.1
WATCH_POLLS = 10
STOP_SECONDS = 20.0
WITHIN_SECONDS = 300.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Stop(Exception):
    """SIGINT or SIGTERM came."""


@dataclass(slots=True)
class _Child:
    name: str
    arguments: Sequence[str]
    process: subprocess.Popen[bytes]
    deaths: list[float] = field(default_factory=list)


def may_restart(deaths: Sequence[float], now: float, max_deaths: int) -> bool:
    """Whether a process that died at these times, in seconds, is started again: few in the last 5 minutes."""
    return sum(now - death < WITHIN_SECONDS for death in deaths) < max_deaths


class Supervisor:
    """Runs commands of this program as child processes until a signal, or until one of them cannot be kept running."""

    def __init__(self, commands: Mapping[str, Sequence[str]], environment: Mapping[str, str], max_deaths: int) -> None:
        """`commands` are arguments of `bestofn` by name, in order of start; `environment` is added to this process'.

        A process that dies `max_deaths` times within 5 minutes ends the run.
        """
        self._max_deaths = max_deaths
        self._commands = commands
        self._environment = {**os.environ, **environment}
        self._children: list[_Child] = []

    def run(self, ready: Callable[[], bool], on_ready: Callable[[], None], watch: Callable[[], bool]) -> None:
        """Start all, call `on_ready` once `ready` says so, and return after SIGINT or SIGTERM.

        `watch` is called about once a second, to look after what is no child of this; it ends the run by True.

        Raises:
            SetupError: a process ended before all were ready, or again and again.
        """
        handlers = {number: signal.signal(number, _stop) for number in SIGNALS}
        try:
            for name, arguments in self._commands.items():
                self._children.append(_Child(name, arguments, self._spawn(arguments)))
            while not ready():
                self._check(restart=False)
                time.sleep(POLL_SECONDS)
            on_ready()
            while not watch():
                for _ in range(WATCH_POLLS):
                    self._check(restart=True)
                    time.sleep(POLL_SECONDS)
        except _Stop:
            pass
        finally:
            with suppress(_Stop):
                _ignore_signals()
            self._stop_all()
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _spawn(self, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "bestofn.cli", *arguments]
        # In a session of its own, so that Ctrl-C in the terminal reaches this process alone, which stops them in order.
        return subprocess.Popen(
            command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=end_with_parent(),
        )

    def _check(self, *, restart: bool) -> None:
        for child in self._children:
            status = child.process.poll()
            if status is None:
                continue
            ended = f"{child.name} ended ({_describe(status)})"
            now = time.monotonic()
            child.deaths.append(now)
            if not restart:
                raise SetupError(f"{ended} before it was ready; its last line says why")
            if not may_restart(child.deaths, now, self._max_deaths):
                raise SetupError(f"{ended} for the {len(child.deaths)}th time; stopping everything")
            say(f"{ended}; starting it again")
            child.process = self._spawn(child.arguments)

    def _stop_all(self) -> None:
        killed = stop([child.process for child in reversed(self._children)], STOP_SECONDS)
        for child in self._children:
            if child.process in killed:
                say(f"{child.name} did not stop within {STOP_SECONDS:.0f} s; killed")


def _stop(number: int, frame: FrameType | None) -> None:
    _ignore_signals()
    raise _Stop


def _ignore_signals() -> None:
    """A second signal, be it pending already, must not leave processes behind."""
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: None)


def _describe(status: int) -> str:
    return f"status {status}" if status >= 0 else signal.Signals(-status).name
