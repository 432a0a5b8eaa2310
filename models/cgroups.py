"""Limits of CPU and memory that a container, or another control group of Linux, grants this process."""

from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")
_NO_LIMIT = 2**60  # version 1 writes the greatest page-aligned number for "no limit"


def cpu_quota(root: Path = CGROUPS, own: Path = OWN_GROUP) -> float | None:
    """Cores' worth of CPU time that the control group grants; None without a limit."""
    found = []
    for folder in _groups(root, own, "cpu"):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if not quota:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):
            found.append(int(quota) / int(period))
    return min(found, default=None)


def memory_limit(root: Path = CGROUPS, own: Path = OWN_GROUP) -> int | None:
    """Bytes that the control group grants; None without a limit."""
    texts = [
        _read(folder / name)
        for folder in _groups(root, own, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
    ]
    return min((int(text) for text in texts if text.isdigit() and int(text) < _NO_LIMIT), default=None)


def _groups(root: Path, own: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's control group and of those around it, of both versions of the interface."""
    for line in _read(own).splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            base = root
        elif controller in controllers.split(","):
            base = root / controller
        else:
            continue
        folder = base / path.strip("/")
        yield from (place for place in (folder, *folder.parents) if place == base or base in place.parents)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
