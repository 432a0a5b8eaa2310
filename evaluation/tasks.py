"""What is drawn in an evaluation: prompts with their noise seeds and, in the shapes world, what an image must show."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from bestofn.evaluation.files import read_lines
from bestofn.models.shapes.prompts import SEED_STRIDE, PromptSpec, benchmark_prompts
from bestofn.models.shapes.world import CANVAS
from bestofn.service.core.errors import InvalidRequest, SetupError
from bestofn.service.core.request_checks import check_text, is_blank


@dataclass(frozen=True)
class Task:
    """One prompt of an evaluation.

    Attributes:
        prompt: as a user would write it.
        tag: its category, over which scores are averaged.
        seed: seed of its first candidate; candidate i has seed + i.
        spec: what the evaluator looks for; None outside the shapes world, where images are scored elsewhere.
        held_out: whether it names a combination that no training image shows.
        metadata: the line of a file that it was read from.
        place: file and number of that line, for errors.
    """

    prompt: str
    tag: str
    seed: int
    spec: PromptSpec | None = None
    held_out: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)
    place: str = ""


@cache
def benchmark() -> tuple[Task, ...]:
    """The 240 prompts of the shapes benchmark."""
    return tuple(Task(one.spec.prompt, one.spec.tag, one.seed, one.spec, one.held_out) for one in benchmark_prompts())


def check_size(name: str, size: tuple[int, int] | None, remedy: str) -> None:
    """Check that the benchmark's evaluator can measure images of a size in pixels; None: not known yet.

    Raises:
        SetupError: it cannot, with the name of the generator and the remedy.
    """
    if size not in (None, (CANVAS, CANVAS)):
        drawn = f"{name} draws {size[0]}x{size[1]}"
        raise SetupError(f"{drawn}, and the benchmark's evaluator measures {CANVAS}x{CANVAS}: {remedy}")


def read(path: Path) -> tuple[Task, ...]:
    """Prompts of a file: one a line, as plain text or as a JSON object.

    The objects are GenEval's (`tag`, `include`, `prompt`), GenEval 2's (`prompt`, `atom_count`, `vqa_list`) or have a
    `prompt`. GenEval's images are evaluated by its own evaluator.

    The category is GenEval's tag or GenEval 2's number of atoms.

    Raises:
        ValueError: naming the line that is none of these, or that shows nothing.
    """
    out: list[Task] = []
    for number, line in read_lines(path):
        place = f"{path}, line {number}"
        fields = _fields(place, line)
        prompt, tag = fields.get("prompt"), fields.get("tag")
        if not isinstance(prompt, str):
            raise ValueError(f'{place}: expected a JSON object with a "prompt", or a prompt as plain text')
        try:
            check_text("prompt", prompt)
        except InvalidRequest as error:
            raise ValueError(f"{place}: {error.detail}") from error
        if is_blank(prompt):
            raise ValueError(f"{place}: the prompt is blank; say what the image should show, or remove the line")
        if tag is None:
            tag = f"{fields['atom_count']} atoms" if "atom_count" in fields else "prompts"
        out.append(Task(prompt, str(tag), SEED_STRIDE * len(out), metadata=fields, place=place))
    if not out:
        raise ValueError(f"{path} holds no prompts")
    return tuple(out)


def _fields(place: str, line: str) -> dict[str, Any]:
    """The JSON object of a line, or that of a line of plain text."""
    text = line.strip()
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.startswith(("{", "[{")) or text == "[":
            raise ValueError(f'{place}: expected a JSON object with a "prompt" on one line: {error}') from error
        return {"prompt": text}
    if isinstance(fields, dict):
        return fields
    return {} if isinstance(fields, list) else {"prompt": fields if isinstance(fields, str) else text}


def digest(tasks: Sequence[Task]) -> str:
    """Identity of a set of prompts."""
    return hashlib.sha256("\n".join(f"{task.seed} {task.prompt}" for task in tasks).encode()).hexdigest()[:12]
