"""A worker process with the sleeping engine, which notes when it is given a heat: lines of "monotonic-seconds job".

python tests/bench/sleeper.py SLOTS STEP_SECONDS NOTES
"""

import sys
import time
from pathlib import Path

from bestofn.service.core.jobs import Heat
from bestofn.service.core.settings import load_settings
from bestofn.service.engine.fake import FakeEngine
from bestofn.service.worker.worker import run_worker


class NotingEngine(FakeEngine):
    """The sleeping engine with a note of each heat."""

    def __init__(self, slots: int, step_seconds: float, notes: Path) -> None:
        super().__init__(slots=slots, step_seconds=step_seconds)
        self._notes = notes.open("a", buffering=1)

    def admit(self, heat: Heat) -> None:
        self._notes.write(f"{time.monotonic():.6f} {heat.job.id}\n")
        super().admit(heat)


if __name__ == "__main__":
    slots, step_seconds, notes = sys.argv[1:]
    sys.exit(run_worker(load_settings(), lambda: NotingEngine(int(slots), float(step_seconds), Path(notes))))
