"""The judge's answer on one image and the two total orders over such answers, without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypedDict, cast

Answer = Literal["yes", "no", "other"]

ANSWERS: tuple[Answer, ...] = ("yes", "no", "other")


class Rule(StrEnum):
    """How verdicts are compared: as the published selection script does, or by log-odds."""

    OFFICIAL = "official"
    MARGIN = "margin"


class VerdictJson(TypedDict):
    """A verdict on the wire; a logit that is not a finite number is null."""

    answer: Answer
    yes_logit: float | None
    no_logit: float | None
    p_yes: float | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """First-token answer of the judge on one image.

    Attributes:
        answer: the word with the greatest logit of the whole vocabulary, "other" if it is neither word.
        yes_logit: raw logit of the token "yes".
        no_logit: raw logit of the token "no".
    """

    answer: Answer
    yes_logit: float
    no_logit: float

    def __post_init__(self) -> None:
        if self.answer not in ANSWERS:
            raise ValueError(f"a verdict's answer is one of {', '.join(ANSWERS)}, got {self.answer!r}")

    @property
    def broken(self) -> bool:
        """Whether a logit is not a finite number, as after an overflow in half precision."""
        return not (math.isfinite(self.yes_logit) and math.isfinite(self.no_logit))

    @property
    def margin(self) -> float:
        """Log-odds of yes against no; NaN if the verdict is broken."""
        return math.nan if self.broken else self.yes_logit - self.no_logit

    @property
    def p_yes(self) -> float:
        """Probability of yes among the two words, sigmoid(margin); NaN if the verdict is broken."""
        # tanh saturates where exp would overflow.
        return 0.5 * (1.0 + math.tanh(0.5 * self.margin))

    def to_json(self) -> VerdictJson:
        """The four fields of the wire; non-finite numbers become null, which JSON has and NaN it has not."""
        return {
            "answer": self.answer,
            "yes_logit": _finite(self.yes_logit),
            "no_logit": _finite(self.no_logit),
            "p_yes": _finite(self.p_yes),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, object]) -> Verdict:
        """Reads what `to_json` wrote; null logits come back as NaN, and `p_yes` is computed anew.

        Raises:
            ValueError: a field is missing or is neither a number nor null.
        """
        return cls(cast(Answer, fields.get("answer")), _number(fields, "yes_logit"), _number(fields, "no_logit"))


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def _number(fields: Mapping[str, object], name: str) -> float:
    if name not in fields:
        raise ValueError(f"a verdict needs the field {name}, got {sorted(fields)}")
    x = fields[name]
    if x is None:
        return math.nan
    if isinstance(x, bool) or not isinstance(x, int | float):
        raise ValueError(f"{name} of a verdict is a number or null, got {x!r}")
    return float(x)


def rank(verdicts: Sequence[Verdict], rule: Rule = Rule.MARGIN) -> list[int]:
    """Indices of the candidates, best first: a total order, so that a sort and any knockout agree.

    `official` is the comparison of the published selection script (NVlabs/Sana,
    tools/inference_scaling/nvila_sana_pick.py): a yes beats a no, of two yes the greater raw yes-logit
    wins, of two no the lower raw no-logit wins, and a tie goes to the later candidate. `margin` orders by
    log-odds, and a tie goes to the earlier candidate. The script is not transitive for answers that are
    neither word nor for NaN; here, under both rules, an answer that is neither word ranks after every yes and
    no, and a broken verdict after those.
    """
    if rule is Rule.OFFICIAL:
        return sorted(range(len(verdicts)), key=lambda i: (*_official_key(verdicts[i]), -i))
    return sorted(range(len(verdicts)), key=lambda i: (*_margin_key(verdicts[i]), i))


def script_prefers_first(a: Verdict, b: Verdict) -> bool:
    """The published script's comparison of two files, a before b, to the letter; no order in general.

    Among equal answers other than "yes" the lower no-logit wins; a tie or a NaN goes to b; between different
    answers of which the first is not "yes", b wins even if it is neither word.
    """
    if a.answer != b.answer:
        return a.answer == "yes"
    return a.yes_logit > b.yes_logit if a.answer == "yes" else a.no_logit < b.no_logit


def _official_key(verdict: Verdict) -> tuple[int, float]:
    if verdict.broken:
        return 3, 0.0
    if verdict.answer == "yes":
        return 0, -verdict.yes_logit
    return (1 if verdict.answer == "no" else 2), verdict.no_logit


def _margin_key(verdict: Verdict) -> tuple[int, float]:
    if verdict.broken:
        return 2, 0.0
    return (1 if verdict.answer == "other" else 0), -verdict.margin
