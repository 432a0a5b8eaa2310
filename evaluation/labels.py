"""Images of which it is known whether they are right, to calibrate a judge on: a list of files, or an eval's pool."""

import json
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bestofn.evaluation.files import read_lines
from bestofn.service.core.errors import SetupError
from bestofn.service.core.field_errors import explain

FORM = 'a line is {"image": "a.png", "prompt": "two hearts", "correct": true}'


class Labelled(BaseModel):
    """One line of a list: a path of an image (relative to the list, or absolute), its prompt, and whether it fits.

    Images of one `group`, by default those of one prompt, are taken for candidates of one job.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    image: Path
    prompt: str = Field(min_length=1)
    correct: bool = Field(strict=True)
    group: str | int | None = None


@dataclass(frozen=True, slots=True)
class LabelledPool:
    """Verdicts that an evaluation has kept: margins with the evaluator's word, of each prompt in candidate order."""

    source: str  # which generator and prompts
    judge: str  # its revision
    fields: list[list[tuple[float, bool]]]


def read_labels(path: Path) -> LabelledPool | list[Labelled]:
    """What a file of JSON lines holds: the pool of `bestofn eval`, or labelled images, their paths resolved.

    Raises:
        SetupError: a line is neither, or labels an image once more; with its number.
        ValueError: it cannot be read, or is not UTF-8.
    """
    parsed = [(number, _line(path, number, line)) for number, line in read_lines(path)]
    if parsed and {"model", "judge", "prompts"} <= parsed[0][1].keys():
        return _pool(path, [fields for _, fields in parsed])
    images: list[Labelled] = []
    lines: dict[Any, int] = {}
    for number, fields in parsed:
        try:
            one = Labelled.model_validate(fields)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(map(str, first["loc"]))
            raise SetupError(f"{path}, line {number}: {explain(first, key)}; {FORM}") from error
        before = lines.setdefault((one.image, one.prompt, one.group), number)
        if before != number:
            raise SetupError(f"{path}, line {number}: line {before} has a label of {one.image} already; remove one")
        images.append(one.model_copy(update={"image": path.parent / one.image}))
    return images


def fields_of(images: Sequence[Labelled], margins: Iterable[float]) -> list[list[tuple[float, bool]]]:
    """Judged images by their group, in an order of chance: in the list the best may come first."""
    groups: dict[str | int, list[tuple[float, bool]]] = defaultdict(list)
    for one, margin in zip(images, margins, strict=True):
        groups[one.prompt if one.group is None else one.group].append((margin, one.correct))
    chance = random.Random(0)
    return [chance.sample(field, len(field)) for field in groups.values()]


def _line(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise SetupError(f"{path}, line {number}: not JSON ({error}); {FORM}") from error
    if not isinstance(fields, dict):
        raise SetupError(f"{path}, line {number}: not an object; {FORM}")
    return fields


def _pool(path: Path, lines: Sequence[Mapping[str, Any]]) -> LabelledPool:
    """Of a pool with several numbers of steps the greatest counts; previews and drafts are other images."""
    chunks = [line for line in lines[1:] if "after" not in line and line["correct"]]
    if not chunks:
        raise SetupError(f"{path} holds no images that an evaluator has looked at")
    steps = max(int(line["steps"]) for line in chunks)
    fields: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    for line in sorted((line for line in chunks if line["steps"] == steps), key=lambda line: int(line["start"])):
        judged = zip(line["yes"], line["no"], line["correct"], strict=True)
        fields[line["prompt"]] += [(yes - no, word == "1") for yes, no, word in judged]
    source = f"images of model {lines[0]['model']}, {steps} steps, prompts {lines[0]['prompts']}"
    return LabelledPool(source, str(lines[0]["judge"]), [fields[prompt] for prompt in sorted(fields)])
