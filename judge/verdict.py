"""The judge's answer on one image and the three total orders over such answers, without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NotRequired, TypedDict, cast

Answer = Literal["yes", "no", "other", "unsafe"]

ANSWERS: tuple[Answer, ...] = ("yes", "no", "other", "unsafe")


class Rule(StrEnum):
    """How verdicts are compared: as the published selection script does, by log-odds, or by the lower of two."""

    OFFICIAL = "official"
    MARGIN = "margin"
    LOWER_BOUND = "lower_bound"


class VerdictJson(TypedDict):
    """A verdict as JSON; numbers that are not finite are null. The last two fields belong to verdicts of two judges."""

    answer: Answer
    yes_logit: float | None
    no_logit: float | None
    p_yes: float | None
    second: NotRequired[VerdictJson]
    bound: NotRequired[float | None]


@dataclass(frozen=True, slots=True)
class Verdict:
    """First-token answer of the judge on one image, and a second judge's where two were asked (`calibration.bounded`).

    Attributes:
        answer: the word with the greatest logit of the whole vocabulary, "other" if it is neither word. It is "unsafe"
            if the image checker refuses the image.
        yes_logit: raw logit of the token "yes".
        no_logit: raw logit of the token "no".
        second: the second judge's verdict.
        bound: with it, the smaller of both judges' calibrated log-odds; NaN if one of them is broken.
    """

    answer: Answer
    yes_logit: float
    no_logit: float
    second: Verdict | None = None
    bound: float | None = None

    def __post_init__(self) -> None:
        if self.answer not in ANSWERS:
            raise ValueError(f"a verdict's answer is one of {', '.join(ANSWERS)}, got {self.answer!r}")
        if (self.second is None) is not (self.bound is None) or (self.second and self.second.second):
            raise ValueError("a verdict has a second one and the bound of both, or neither, and a second one has none")

    @property
    def broken(self) -> bool:
        """Whether a logit is not a finite number, as after an overflow in half precision; of either judge."""
        own = not (math.isfinite(self.yes_logit) and math.isfinite(self.no_logit))
        return own or (self.second is not None and self.second.broken)

    @property
    def usable(self) -> bool:
        """Whether it is a yes or a no, of both judges, in finite numbers."""
        answered = self.answer in ("yes", "no") and (self.second is None or self.second.answer in ("yes", "no"))
        return answered and not self.broken

    @property
    def unsafe(self) -> bool:
        """Whether the image checker refuses the image, which is then never kept or shown."""
        return self.answer == "unsafe"

    @property
    def yes(self) -> bool:
        """Whether it is a usable yes, of both judges."""
        return self.usable and self.answer == "yes" and (self.second is None or self.second.answer == "yes")

    @property
    def margin(self) -> float:
        """The first judge's log-odds of yes against no; NaN if the verdict is broken."""
        return math.nan if self.broken else self.yes_logit - self.no_logit

    @property
    def p_yes(self) -> float:
        """Probability of yes among the two words, sigmoid(margin); of two judges the smaller calibrated one,
        sigmoid(bound). NaN if the verdict is broken."""
        # tanh saturates where exp would overflow.
        return 0.5 * (1.0 + math.tanh(0.5 * (self.margin if self.bound is None else self.bound)))

    def to_json(self) -> VerdictJson:
        """The fields of the wire; non-finite numbers become null, which JSON has and NaN it has not."""
        fields: VerdictJson = {
            "answer": self.answer,
            "yes_logit": _finite(self.yes_logit),
            "no_logit": _finite(self.no_logit),
            "p_yes": _finite(self.p_yes),
        }
        if self.second is not None and self.bound is not None:
            fields |= {"second": self.second.to_json(), "bound": _finite(self.bound)}
        return fields

    @classmethod
    def from_json(cls, fields: Mapping[str, object]) -> Verdict:
        """Reads what `to_json` wrote; null logits come back as NaN, and `p_yes` is computed again.

        Raises:
            ValueError: a field is missing or is neither a number nor null.
        """
        own = cast(Answer, fields.get("answer")), _number(fields, "yes_logit"), _number(fields, "no_logit")
        second = fields.get("second")
        if second is None:
            return cls(*own)
        if not isinstance(second, Mapping):
            raise ValueError(f"the second judge's verdict is an object, got {second!r}")
        return cls(*own, cls.from_json(second), _number(fields, "bound"))


BROKEN = Verdict("other", math.nan, math.nan)
"""No verdict, as after an error: it ranks after every other and promises nothing."""

UNSAFE = Verdict("unsafe", math.nan, math.nan)
"""The verdict on an image that the image checker refuses: it ranks last of all."""


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
    tools/inference_scaling/nvila_sana_pick.py). A yes beats a no. Of two yes the greater raw yes-logit wins, of two no
    the lower raw no-logit. A tie goes to the later candidate.

    `margin` orders by log-odds. A tie goes to the earlier candidate.

    `lower_bound` orders by the smaller of two judges' calibrated log-odds. A tie goes to the greater sum of their raw
    log-odds, then to the earlier candidate. Verdicts of one judge, as on drafts, are ordered as by `margin`.

    The script is not transitive for other answers and for NaN. Here, under every rule, such an answer ranks after every
    yes and no, a broken verdict after those, and that on an unsafe image last.
    """
    match rule:
        case Rule.OFFICIAL:
            return sorted(range(len(verdicts)), key=lambda i: (*_official_key(verdicts[i]), -i))
        case Rule.MARGIN:
            return sorted(range(len(verdicts)), key=lambda i: (*_margin_key(verdicts[i]), i))
        case Rule.LOWER_BOUND:
            return sorted(range(len(verdicts)), key=lambda i: (*_bound_key(verdicts[i]), i))


def script_prefers_first(a: Verdict, b: Verdict) -> bool:
    """The published script's comparison of two files, a before b, to the letter; no order in general.

    Among equal answers other than "yes" the lower no-logit wins. A tie or a NaN goes to b. Of different answers, b wins
    if the first is not "yes", even if b is neither word.
    """
    if a.answer != b.answer:
        return a.answer == "yes"
    return a.yes_logit > b.yes_logit if a.answer == "yes" else a.no_logit < b.no_logit


def _official_key(verdict: Verdict) -> tuple[int, float]:
    if verdict.unsafe or verdict.broken:
        return 3 + verdict.unsafe, 0.0
    if verdict.answer == "yes":
        return 0, -verdict.yes_logit
    return (1 if verdict.answer == "no" else 2), verdict.no_logit


def _margin_key(verdict: Verdict) -> tuple[int, float]:
    if verdict.unsafe or verdict.broken:
        return 2 + verdict.unsafe, 0.0
    return (1 if verdict.answer == "other" else 0), -verdict.margin


def _bound_key(verdict: Verdict) -> tuple[int, float, float]:
    if verdict.unsafe or verdict.broken:
        return 2 + verdict.unsafe, 0.0, 0.0
    margin = verdict.margin + (verdict.second.margin if verdict.second else 0.0)
    bound = verdict.margin if verdict.bound is None else verdict.bound
    return (0 if verdict.usable else 1), -bound, -margin
