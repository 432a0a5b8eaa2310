"""File descriptors of this process: the soft limit is raised to the hard one."""

import contextlib
import resource

_MOST = 1_048_576  # systems with a greater or no hard limit refuse more than about this


def raise_descriptor_limit() -> int:
    """Raise the soft limit of descriptors to the hard limit, as far as the system allows; returns the soft limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return _MOST if soft == resource.RLIM_INFINITY else soft
