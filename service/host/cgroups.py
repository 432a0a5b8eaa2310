"""What this process may use of the machine: cores and file descriptors."""

import contextlib
import os
import resource

from bestofn.models.cgroups import cpu_quota

_MOST_DESCRIPTORS = 1_048_576  # systems with a greater or no hard limit refuse more than about this


def cores() -> int:
    """Cores that this process may use: those of its affinity, or as many as its quota of CPU time is worth."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def raise_descriptor_limit() -> int:
    """Raise the soft limit of descriptors to the hard limit, as far as the system allows; returns the soft limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return _MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
