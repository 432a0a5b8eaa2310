"""Child processes that end with their parent, whatever ends it; Linux only, elsewhere nothing."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

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
