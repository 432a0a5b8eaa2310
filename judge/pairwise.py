"""A judge that compares two images: its question, its answers, and a knockout match by match. Pure, without torch.

Every match is asked twice, once in each order. A judge with a position bias then names both images, one each time.
Such a match is a draw, and the better placed candidate goes on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Answer = Literal["first", "second"] | None
"""Which of two images was named; None: neither."""

QUESTION = (
    "Both images were made for this prompt:\n{prompt}\n\n"
    "Which image shows better what the prompt says: its objects, their number, colours, attributes and positions? "
    "Answer with one letter only: A for the first image, B for the second."
)
LABELS = ("Image A:", "Image B:")
_LETTERS: Mapping[str, Answer] = {"A": "first", "B": "second"}

# One letter, perhaps after a word that names it and with signs around it; no letter that begins a sentence.
_ANSWER = re.compile(r"\W*(?:(?:answer|image|picture)\W+)*([AB])(?!\w)(?!\s+\w)", re.IGNORECASE)
_THOUGHTS = re.compile(r"(?s).*</(?:think|thinking|thought|reasoning)>")  # some templates open them in the prompt
_OPENING = re.compile(r"([<\[])(?=\S)")


def question(prompt: str) -> str:
    """The question about two images."""
    return QUESTION.replace("{prompt}", without_control_tokens(prompt))


def without_control_tokens(prompt: str) -> str:
    """A prompt that holds no control or media token of any model's template.

    Chat templates of all kinds open these with `<` or `[` (`<|im_end|>`, `<image>`, `[IMG]`). A space after these in
    the prompt leaves none of them whole, whichever model reads it.
    """
    return _OPENING.sub(r"\1 ", prompt).strip()


def read_answer(text: str, logprobs: Mapping[str, float]) -> Answer:
    """Read a reply: its text and the log-probabilities of its first token (empty: the server returned none).

    Thoughts before the answer are left out; the caller passes no log-probabilities where there are any.
    """
    mass = dict.fromkeys(_LETTERS, 0.0)
    for token, logprob in logprobs.items():
        letter = token.strip().upper()
        if letter in mass and not math.isnan(logprob):
            mass[letter] += math.exp(min(logprob, 0.0))
    total = sum(mass.values())
    if total > 0:
        p_first = mass["A"] / total
        return None if p_first == 0.5 else "first" if p_first > 0.5 else "second"
    found = _ANSWER.match(_THOUGHTS.sub("", text))
    return _LETTERS[found[1].upper()] if found else None


@dataclass(frozen=True, slots=True)
class Played:
    """A match that was asked in both orders.

    Attributes:
        a: the better placed.
        b: None for a bye, which `a` wins.
        answers: candidate that the judge named with `a` first, and with `b` first; None: neither. Empty for a bye.
        winner: candidate that was named twice, else `a`.
    """

    a: int
    b: int | None
    answers: tuple[int | None, ...]
    winner: int

    @property
    def draw(self) -> bool:
        """Whether no candidate was named twice."""
        return self.b is not None and self.answers not in ((self.a, self.a), (self.b, self.b))

    def to_json(self) -> dict[str, Any]:
        """`{"a": 0, "b": 1, "answers": [0, 0], "winner": 0}`."""
        return {"a": self.a, "b": self.b, "answers": list(self.answers), "winner": self.winner}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Played:
        """Reads what `to_json` wrote."""
        return cls(fields["a"], fields["b"], tuple(fields["answers"]), fields["winner"])


Rounds = tuple[tuple[Played, ...], ...]


def read_rounds(rounds: Sequence[Sequence[Mapping[str, Any]]]) -> Rounds:
    """Reads rounds of matches that `Played.to_json` wrote."""
    return tuple(tuple(Played.from_json(match) for match in matches) for matches in rounds)


Answers = tuple[Answer, Answer]  # one match: with `a` shown first, then with `b` shown first


def decide(pair: tuple[int, int], answers: Answers) -> Played:
    """The winner of a match: the candidate that both orders name, else the first of the pair, the better placed one."""
    a, b = pair
    shown = ({"first": a, "second": b, None: None}, {"first": b, "second": a, None: None})
    named = tuple(images[answer] for images, answer in zip(shown, answers, strict=True))
    return Played(a, b, named, b if named == (b, b) else a)


def knockout(order: Sequence[int]) -> Generator[tuple[list[tuple[int, int]], Rounds], list[Answers], Rounds]:
    """Play rounds until one is left: yields a round's matches and earlier rounds, gets the answers, returns all rounds.

    In each round the first meets the last, the second the last but one. With an odd number the first has a bye. So the
    leaders do not eliminate each other early. A comparator that is not transitive still gives one winner.

    Args:
        order: entrants, best first by their verdicts.

    Raises:
        ValueError: there are no entrants, or one enters twice.
    """
    if not order or len(set(order)) != len(order):
        raise ValueError(f"a knockout needs entrants, each once, got {list(order)}")
    rounds: list[tuple[Played, ...]] = []
    field = list(order)
    while len(field) > 1:
        byes, rest = field[: len(field) % 2], field[len(field) % 2 :]
        pairings = list(zip(rest[: len(rest) // 2], reversed(rest), strict=False))
        answers = yield pairings, tuple(rounds)
        played = [decide(pairing, answer) for pairing, answer in zip(pairings, answers, strict=True)]
        rounds.append((*(Played(one, None, (), one) for one in byes), *played))
        field = sorted((match.winner for match in rounds[-1]), key=list(order).index)
    return tuple(rounds)


def ranking(order: Sequence[int], rounds: Rounds) -> list[int]:
    """The entrants, best first: by the round that they reached, then as in `order`."""
    reached = {one: sum(any(match.winner == one for match in matches) for matches in rounds) for one in order}
    return sorted(order, key=lambda one: (-reached[one], list(order).index(one)))
