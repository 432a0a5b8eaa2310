"""Optimizers of the trainings."""

from typing import Literal

Name = Literal["adamw", "came", "came8bit", "muon"]
