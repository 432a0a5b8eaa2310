"""Entry point of `bestofn` and of `python -m bestofn.cli`: Ctrl-C has its one line and status while modules load."""

import os
import signal
from types import FrameType

INTERRUPTED = 130


def app() -> None:
    """Load the program and run it; loading takes up to a second."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else the caller has it ignored, as nohup does
        signal.signal(signal.SIGINT, _interrupted)
    from bestofn.cli import main

    if signal.getsignal(signal.SIGINT) is _interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    main.app()


def _interrupted(number: int, frame: FrameType | None) -> None:
    os.write(2, b"bestofn: interrupted\n")
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    app()
