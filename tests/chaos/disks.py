"""A disk so small that it can be filled: memory mounted as a file system, which needs root on Linux."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Disk:
    """Mounted at `folder`."""

    folder: Path

    def fill(self) -> None:
        """Takes all that is free."""
        ballast = os.open(self.folder / "ballast", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        with contextlib.suppress(OSError):
            while True:
                os.write(ballast, bytes(4096))
        os.close(ballast)

    def free(self) -> None:
        """Gives it back."""
        (self.folder / "ballast").unlink()


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int = 8) -> Iterator[Disk]:
    """Raises OSError where nothing can be mounted."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "bestofn", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        raise OSError(f"cannot mount a small disk, which needs root: {mounted.stderr.strip()}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
