"""Child processes: they end with their parent, whatever ends it (on Linux), and are stopped together."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with_parent() -> Callable[[], None]:
    """A `preexec_fn`: the process gets SIGTERM when the thread that started it ends; start it in the main thread."""
    parent = os.getpid()

    def ask() -> None:
        if _libc is not None:
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:  # it has ended before the call
                os.kill(os.getpid(), signal.SIGTERM)

    return ask


def stop(processes: Sequence["subprocess.Popen[bytes]"], seconds: float) -> list["subprocess.Popen[bytes]"]:
    """Terminate processes and wait for all; returns those that had to be killed after `seconds`."""
    killed = []
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + seconds
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed.append(process)
    return killed
