"""Sleeping workers under the supervisor that `bestofn worker` has for several devices: killed ones start again."""

import sys
from pathlib import Path

from bestofn.service.core.settings import load_settings
from bestofn.service.telemetry import start
from bestofn.service.worker.supervisor import supervise

ENGINE = Path(__file__).parent / "engine.py"


def main(count: str, slots: str, step_seconds: str, notes: str) -> int:
    start(load_settings(), "worker")
    return supervise([[sys.executable, "-P", str(ENGINE), "fake", slots, step_seconds, notes]] * int(count))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
