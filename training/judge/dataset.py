"""Batches of judge training in the shapes world: scenes, minimal pairs and generated images, labelled by the evaluator.

A step's batch depends on the seed, the step and the pools alone, so a resumed run sees the same batches.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bestofn.models.shapes.evaluator import Component, measure
from bestofn.models.shapes.prompts import PLURAL, PromptSpec, known_words
from bestofn.models.shapes.questions import sample_questions
from bestofn.models.shapes.rules import Found, relations, violation
from bestofn.models.shapes.scenes import RELATIONS
from bestofn.models.shapes.world import COLOURS, SHAPES
from bestofn.training.judge.composition import composed_scene
from bestofn.training.judge.examples import ImageExample, QuestionExample
from bestofn.training.judge.image_pool import PoolImages
from bestofn.training.judge.labels import MALFORMED_WORD, LabelledImage
from bestofn.training.judge.minimal_pairs import FLAWS, SWAPPED_PLACES, minimal_pair
from bestofn.training.judge.outlines import OutlineLibrary
from bestofn.training.judge.settings import BatchMix

QUESTION = "{prompt}"
"""The embedded judge is asked the bare prompt: every further word would cost as much as a word of it."""

OWN_PROMPT_WEIGHT = 2.0
"""Weight of the answer to the prompt that an image was made for; other questions count 1."""

_COUNT = re.compile(r"\b(two|three|four|five)\b")
_RELATION = re.compile(rf"\b({'|'.join(RELATIONS)})\b")
_SINGULAR = {plural: shape for shape, plural in PLURAL.items()}
_NAMED = re.compile(rf"(?:\b({'|'.join(COLOURS)}) )?\b({'|'.join((*SHAPES, *_SINGULAR))})\b")
_COLOUR = re.compile(rf"\b({'|'.join(COLOURS)})\b")


def words() -> list[str]:
    """Vocabulary of the judge's tokenizer: the world's words and those of descriptions."""
    return sorted({*known_words(), MALFORMED_WORD})


def category(prompt: str) -> str:
    """GenEval's category of a prompt of the world; a position or a count with colours has one of its own."""
    coloured = bool(_COLOUR.search(prompt))
    if _COUNT.search(prompt):
        return "counting_color" if coloured else "counting"
    if _RELATION.search(prompt):
        return "position_color" if coloured else "position"
    if " and " in prompt:
        return "color_attr" if coloured else "two_object"
    return "colors" if coloured else "single_object"


def importance(prompt: str) -> float:
    """Weight of a question: relations and numbers, the last things to be learned, count double."""
    return 2.0 if category(prompt).startswith(("position", "counting")) else 1.0


def auxiliary_targets(prompt: str, objects: Sequence[Found]) -> tuple[tuple[int, bool], ...]:
    """Intermediate truths of a prompt: a number of words, and whether the objects agree with what those words say.

    After the name of an object: whether one like it is there. After a relation: whether one like the first object lies
    so to any other.
    """

    def like(named: re.Match[str]) -> list[Found]:
        colour, word = named.groups()
        return [one for one in objects if one.shape == _SINGULAR.get(word, word) and colour in (None, one.colour)]

    names = list(_NAMED.finditer(prompt))
    out = [(named.end(), bool(like(named))) for named in names]
    if relation := _RELATION.search(prompt):
        pairs = ((a, b) for a in like(names[0]) for b in objects if a is not b)
        out.insert(1, (relation.end(), any(relation[0] in relations(a, b) for a, b in pairs)))
    return tuple((len(prompt[:end].split()), truth) for end, truth in out)


@dataclass(frozen=True, eq=False)
class LabelledCandidate:
    """A generated image with its labels, the prompt it was drawn for, and whether it satisfies that prompt."""

    labelled: LabelledImage
    spec: PromptSpec
    correct: bool


PromptGroup = tuple[LabelledCandidate, ...]
"""Generated images of one prompt."""


def label_pool(pool: Sequence[PoolImages]) -> tuple[list[PromptGroup], list[Component]]:
    """The images of a pool by job and prompt, and every object in them."""
    groups: dict[tuple[int, str], list[LabelledCandidate]] = {}
    objects: list[Component] = []
    for job, images in enumerate(pool):
        for image, spec in zip(images.images, images.specs, strict=True):
            components = measure(image)
            labelled = LabelledImage.measured(image, components)
            correct = violation(labelled.found, spec) is None
            groups.setdefault((job, spec.prompt), []).append(LabelledCandidate(labelled, spec, correct))
            objects += components
    return [tuple(group) for group in groups.values()], objects


def is_mixed(group: PromptGroup) -> bool:
    """Whether some images of a group satisfy the prompt and others do not."""
    return len({one.correct for one in group}) == 2


MIXED_SHARE = 0.85
"""Share of the generated groups of a batch that are drawn from those with right and wrong images."""


class BatchSampler:
    """The batch of each step of a stage.

    Args:
        seed: seed of the stage.
        mix: composition of a batch.
        pools: prompt groups of each round so far; rounds are drawn equally often.
        library: outlines for scenes and pairs; None for drawn shapes.
        vision_warmup_steps: first steps, whose batches have label maps alone and twice as many images.
    """

    def __init__(
        self,
        seed: int,
        mix: BatchMix,
        pools: Sequence[Sequence[PromptGroup]] = (),
        library: OutlineLibrary | None = None,
        vision_warmup_steps: int = 0,
    ) -> None:
        self.seed, self.mix, self.library = seed, mix, library
        self.vision_warmup_steps = vision_warmup_steps
        self._all = [list(pool) for pool in pools]
        self._mixed = [[group for group in pool if is_mixed(group)] for pool in pools]

    def __call__(self, step: int) -> list[ImageExample]:
        """Examples of a step."""
        rng, mix = np.random.default_rng((self.seed, step)), self.mix
        if step < self.vision_warmup_steps:
            images = 2 * (mix.groups * mix.group_images + 2 * (mix.pairs + mix.place_pairs) + mix.scenes)
            return [replace(scene_example(rng, self.library, 0, mix.flawed), description=None) for _ in range(images)]
        out: list[ImageExample] = []
        for number in range(mix.groups):
            out += self._group(rng, number)
        for number, flaws in enumerate([FLAWS] * mix.pairs + [SWAPPED_PLACES] * mix.place_pairs):
            out += pair_examples(rng, self.library, mix.pair_questions, mix.groups + number, flaws)
        return out + [scene_example(rng, self.library, mix.questions, mix.flawed) for _ in range(mix.scenes)]

    def _group(self, rng: np.random.Generator, number: int) -> list[ImageExample]:
        """Images of one prompt, half of them right where there are enough of both."""
        pool = int(rng.integers(len(self._all)))
        mixed = bool(self._mixed[pool]) and rng.random() < MIXED_SHARE
        groups = self._mixed[pool] if mixed else self._all[pool]
        group = groups[int(rng.integers(len(groups)))]
        right = [one for one in group if one.correct]
        wrong = [one for one in group if not one.correct]
        half, wanted = self.mix.group_images // 2, self.mix.group_images
        n_wrong = min(len(wrong), wanted - min(half, len(right)))
        n_right = min(len(right), wanted - n_wrong)
        picked = [right[k] for k in rng.permutation(len(right))[:n_right]]
        picked += [wrong[k] for k in rng.permutation(len(wrong))[:n_wrong]]
        return [generated_example(rng, one, self.mix.questions, number) for one in picked]


def generated_example(
    rng: np.random.Generator, one: LabelledCandidate, questions: int, group: int | None = None
) -> ImageExample:
    """A generated image with its own prompt first."""
    own = _question(one.spec, one.correct, one.labelled.found, OWN_PROMPT_WEIGHT, group)
    return _example(rng, one.labelled, (), questions - 1, (own,))


def scene_example(
    rng: np.random.Generator, library: OutlineLibrary | None, questions: int, flawed_share: float = 0.5
) -> ImageExample:
    """A composed scene."""
    image, drawn = composed_scene(rng, library, flawed_share)
    return _example(rng, LabelledImage.of(image), drawn, questions)


def pair_examples(
    rng: np.random.Generator, library: OutlineLibrary | None, questions: int, group: int, flaws: Mapping[str, float]
) -> list[ImageExample]:
    """Both images of a minimal pair, the right one first, ranked against each other."""
    pair = minimal_pair(rng, library, flaws)
    out = []
    for labelled, satisfied in ((pair.right, True), (pair.wrong, False)):
        own = _question(pair.spec, satisfied, labelled.found, OWN_PROMPT_WEIGHT, group)
        out.append(_example(rng, labelled, pair.right.found, questions - 1, (own,)))
    return out


def unseen_scenes(images: int, questions: int) -> list[ImageExample]:
    """Composed scenes for scoring, from a stream that no training seed draws from."""
    rng = np.random.default_rng((2**63 - 1, 0))
    return [scene_example(rng, None, questions) for _ in range(images)]


def _question(
    spec: PromptSpec, satisfied: bool, found: Sequence[Found], weight: float = 1.0, group: int | None = None
) -> QuestionExample:
    prompt = spec.prompt
    return QuestionExample(prompt, satisfied, weight * importance(prompt), auxiliary_targets(prompt, found), group)


def _example(
    rng: np.random.Generator,
    labelled: LabelledImage,
    drawn: Sequence[Found],
    questions: int,
    own: tuple[QuestionExample, ...] = (),
) -> ImageExample:
    asked = sample_questions(rng, labelled.found, drawn, questions)
    others = tuple(_question(spec, satisfied, labelled.found) for spec, satisfied in asked)
    return ImageExample(labelled.image, own + others, labelled.description, labelled.cells)
