"""Supervisor of worker processes: one a device, restarted when it ends, until no device can be used."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import FrameType

import structlog

from bestofn.service.host.child_processes import end_with_parent
from bestofn.service.host.child_processes import stop as stop_processes

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
HEALTHY_SECONDS = 60.0  # a worker that served this long, after loading, starts again without a pause
LOST_AFTER = 6  # short runs in a row
STOP_SECONDS = 20.0
_POLL_SECONDS = 0.2
READY_DESCRIPTOR = "WORKER_READY_FD"  # environment variable: a pipe's descriptor, on which a worker says it is ready

log = structlog.get_logger()


def announce_ready() -> None:
    """Say to the supervisor, if there is one, that weights are loaded and the queue is served."""
    descriptor = os.environ.pop(READY_DESCRIPTOR, None)
    if descriptor is not None:
        os.write(int(descriptor), b"1")
        os.close(int(descriptor))


def pause_after(failures: int, first: float = FIRST_PAUSE_SECONDS) -> float:
    """Seconds to wait before the next start after `failures` short runs in a row: 1, 2, 4 ... at most 60."""
    return min(LONGEST_PAUSE_SECONDS, first * 2.0 ** (failures - 1)) if failures else 0.0


def all_lost(failures: Sequence[int], lost_after: int) -> bool:
    """Whether no device can be used, given each one's short runs in a row.

    A bad device is retried with growing pauses while others work. If all fail, only a restart of the container can
    help.
    """
    return all(count >= lost_after for count in failures)


@dataclass
class _Child:
    command: Sequence[str]
    first_pause: float
    healthy_seconds: float
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    pipe: int | None = None  # on which the process says that it is ready
    ready: float | None = None  # when it did
    due: float = 0.0
    failures: int = field(default=0)

    def start(self) -> None:
        self.pipe, theirs = os.pipe()
        os.set_blocking(self.pipe, False)
        environment = os.environ | {READY_DESCRIPTOR: str(theirs)}
        begin = end_with_parent()
        self.process = subprocess.Popen(self.command, preexec_fn=begin, env=environment, pass_fds=(theirs,))
        os.close(theirs)
        self.started, self.ready = time.monotonic(), None

    def ended(self) -> bool:
        """Whether the process has just ended; sets the time of the next start."""
        if self.process is None:
            return False
        self._note_ready()
        if self.process.poll() is None:
            return False
        self._note_ready(last=True)
        now = time.monotonic()
        ran, served = now - self.started, None if self.ready is None else now - self.ready
        self.failures = 0 if served is not None and served >= self.healthy_seconds else self.failures + 1
        pause = pause_after(self.failures, self.first_pause)
        self.due = now + pause
        log.warning("worker ended", status=self.process.returncode, ran=round(ran, 1), again_in=pause)
        self.process = None
        return True

    def _note_ready(self, last: bool = False) -> None:
        if self.pipe is None:
            return
        try:
            said = os.read(self.pipe, 1)
        except BlockingIOError:
            said = None
        if said:
            self.ready = time.monotonic()
        if said is not None or last:
            os.close(self.pipe)
            self.pipe = None


def supervise(
    commands: Sequence[Sequence[str]],
    first_pause: float = FIRST_PAUSE_SECONDS,
    healthy_seconds: float = HEALTHY_SECONDS,
    lost_after: int = LOST_AFTER,
) -> int:
    """Run all commands in the main thread and restart each when it ends.

    Loading does not count as health: a worker that dies after a minute of it would be restarted at once for ever. At
    the end every running command gets SIGTERM and `STOP_SECONDS`.

    Returns:
        0 after SIGTERM or SIGINT; 1: no command can be kept running.
    """
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    children = [_Child(command, first_pause, healthy_seconds) for command in commands]
    try:
        while not stop.is_set():
            for child in children:
                if child.ended() and all_lost([each.failures for each in children], lost_after):
                    log.error("no device can be used", devices=len(children), short_runs=lost_after)
                    return 1
                if child.process is None and time.monotonic() >= child.due:
                    child.start()
            stop.wait(_POLL_SECONDS)
    finally:
        stop_processes([child.process for child in children if child.process is not None], STOP_SECONDS)
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0
