"""A training run on disk: its checkpoint, replaced atomically, and its log of JSON lines."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

Progress = Callable[[Mapping[str, float]], None]
"""Called about once a minute of training with the figures of the moment: at least `step`, `steps`, `loss`."""


class Run:
    """A folder that holds one run; everything in it is written so that a killed run can go on."""

    def __init__(self, folder: Path, checkpoint: str = "checkpoint.pt") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.checkpoint = folder / checkpoint
        self.started = time.monotonic()

    def save(self, state: Mapping[str, Any], between: Callable[[], None] = lambda: None) -> None:
        """Replace the checkpoint; a crash while writing leaves the old one.

        Of modules and optimizers in ``state`` their state dict is kept. ``between`` is called when the new file is
        written and the old one still exists. Processes with a file each wait for each other there, so that all files
        are of one step.
        """
        part = self.checkpoint.with_suffix(".part")
        kept = {name: value.state_dict() if hasattr(value, "state_dict") else value for name, value in state.items()}
        torch.save(kept, part)
        between()
        os.replace(part, self.checkpoint)

    def load(self) -> dict[str, Any] | None:
        """The last checkpoint, or None at the start of a run."""
        if not self.checkpoint.exists():
            return None
        state: dict[str, Any] = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        return state

    def resume(self, parts: Mapping[str, Any]) -> dict[str, Any]:
        """Load the last checkpoint's states into modules and optimizers by name.

        Returns:
            All else that was saved; nothing at the start of a run.
        """
        saved = self.load()
        if saved is None:
            return {}
        for name, part in parts.items():
            part.load_state_dict(saved.pop(name))
        return saved

    def log(self, **figures: Any) -> None:
        """Append one line of figures with the seconds since this process began."""
        line = {"seconds": round(time.monotonic() - self.started, 1), **figures}
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
