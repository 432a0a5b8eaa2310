"""Clocks that differ from this machine's, by libfaketime: of one process, from its start or changed while it runs."""

import os
import shlex
from pathlib import Path

_FOLDERS = ("/usr/lib/x86_64-linux-gnu/faketime", "/usr/lib/aarch64-linux-gnu/faketime", "/usr/lib/faketime")
LIBRARY = next((path for folder in _FOLDERS if (path := Path(folder, "libfaketimeMT.so.1")).is_file()), None)
REASON = "needs libfaketime: apt-get install faketime"


class Clock:
    """A wall clock some seconds ahead of this machine's; monotonic clocks and the times of files stay true."""

    def __init__(self, folder: Path, ahead: float = 0.0) -> None:
        self._file = folder / "clock"
        self.set(ahead)

    def set(self, ahead: float) -> None:
        """Move the clock of the processes that run with `environment`, at once."""
        part = self._file.with_suffix(".part")
        part.write_text(f"{ahead:+.0f}\n")
        part.replace(self._file)

    @property
    def environment(self) -> dict[str, str]:
        own = {"LD_PRELOAD": str(LIBRARY), "FAKETIME_TIMESTAMP_FILE": str(self._file), "FAKETIME_NO_CACHE": "1"}
        return os.environ | own | {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1"}

    def program(self, binary: Path) -> Path:
        """A program that runs `binary` with this clock."""
        script = self._file.with_name(binary.name)
        named = {name: self.environment[name] for name in self.environment.keys() - os.environ.keys()}
        settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in named.items())
        script.write_text(f'#!/bin/sh\nexec env {settings} {shlex.quote(str(binary))} "$@"\n')
        script.chmod(0o755)
        return script
