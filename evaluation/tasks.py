"""What is drawn in an evaluation: prompts with their noise seeds and, in the shapes world, what an image must show."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bestofn.models.shapes.prompts import SEED_STRIDE, PromptSpec, benchmark_prompts, calibration_prompts


@dataclass(frozen=True)
class Task:
    """One prompt of an evaluation.

    Attributes:
        prompt: as a user would write it.
        tag: its category, over which scores are averaged.
        seed: of its first candidate; candidate i has seed + i.
        spec: what the evaluator looks for; None outside the shapes world, where images are scored elsewhere.
        held_out: whether it names a combination that no training image shows.
        metadata: the line of a file that it was read from.
    """

    prompt: str
    tag: str
    seed: int
    spec: PromptSpec | None = None
    held_out: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)


def benchmark() -> tuple[Task, ...]:
    """The 240 prompts of the shapes benchmark."""
    return tuple(Task(one.spec.prompt, one.spec.tag, one.seed, one.spec, one.held_out) for one in benchmark_prompts())


def calibration() -> tuple[Task, ...]:
    """As many prompts again, to fit a judge's probabilities on (`calibration_prompts`)."""
    return tuple(Task(one.spec.prompt, one.spec.tag, one.seed, one.spec) for one in calibration_prompts())


def read(path: Path) -> tuple[Task, ...]:
    """Prompts of a file: one JSON object a line.

    The format is GenEval (`tag`, `include`, `prompt`), GenEval 2 (`prompt`, `atom_count`, `vqa_list`) or a `prompt`.
    GenEval's images are evaluated by its own evaluator.

    The category is GenEval's tag or GenEval 2's number of atoms.

    Raises:
        ValueError: naming the line that is none of these.
    """
    out: list[Task] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            prompt, tag = fields["prompt"], fields.get("tag")
            if not isinstance(prompt, str) or not prompt:
                raise TypeError
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f'{path}, line {number}: expected a JSON object with a "prompt"') from error
        if tag is None:
            tag = f"{fields['atom_count']} atoms" if "atom_count" in fields else "prompts"
        out.append(Task(prompt, str(tag), SEED_STRIDE * len(out), metadata=fields))
    if not out:
        raise ValueError(f"{path} holds no prompts")
    return tuple(out)


def digest(tasks: Sequence[Task]) -> str:
    """Identity of a set of prompts."""
    return hashlib.sha256("\n".join(f"{task.seed} {task.prompt}" for task in tasks).encode()).hexdigest()[:12]
