"""The lower bound over two judges: a total order, monotone in both, and one judge's own where both are the same."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bestofn.judge.calibration import Calibration, bounded, probability
from bestofn.judge.verdict import Rule, Verdict, rank

LOGITS = st.sampled_from([-40.0, -2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 60.0])
VERDICTS = st.builds(Verdict, st.sampled_from(["yes", "no"]), LOGITS, LOGITS)
ANY_VERDICT = st.builds(
    Verdict, st.sampled_from(["yes", "no", "other"]), LOGITS | st.just(math.nan), LOGITS | st.just(math.inf)
)
CALIBRATIONS = st.sampled_from([None, Calibration(0.5, 1.2, 0.94), Calibration(3.0, -1.0), Calibration(1.0, 0.0, 0.5)])
PAIRS = st.tuples(CALIBRATIONS, CALIBRATIONS)


@given(pairs=st.lists(st.tuples(ANY_VERDICT, ANY_VERDICT), max_size=12), calibrations=PAIRS)
def test_lower_bound_is_a_total_order_with_the_unusable_last_that_json_keeps(
    pairs: list[tuple[Verdict, Verdict]], calibrations: tuple[Calibration | None, Calibration | None]
) -> None:
    verdicts = [bounded(*pair, calibrations) for pair in pairs]
    order = rank(verdicts, Rule.LOWER_BOUND)
    assert sorted(order) == list(range(len(verdicts)))
    text = json.dumps([verdict.to_json() for verdict in verdicts], allow_nan=False)
    assert rank([Verdict.from_json(fields) for fields in json.loads(text)], Rule.LOWER_BOUND) == order
    groups = [3 if any(v.broken for v in pairs[i]) else 2 if "other" in (pairs[i][0].answer, pairs[i][1].answer) else 1
              for i in order]  # fmt: skip
    assert groups == sorted(groups)
    promises = [probability(verdicts[i], None) for i in order]
    assert promises == sorted(promises, reverse=True)


@given(first=VERDICTS, second=VERDICTS, better=VERDICTS, calibrations=PAIRS, swap=st.booleans())
def test_lower_bound_is_monotone_in_both_judges(
    first: Verdict,
    second: Verdict,
    better: Verdict,
    calibrations: tuple[Calibration | None, Calibration | None],
    swap: bool,
) -> None:
    raised = (first, better) if swap else (better, second)
    rises = better.margin - (second if swap else first).margin
    order = rank([bounded(first, second, calibrations), bounded(*raised, calibrations)], Rule.LOWER_BOUND)
    assert order == ([1, 0] if rises > 0 else [0, 1])


@given(verdicts=st.lists(ANY_VERDICT, min_size=1, max_size=12), calibration=CALIBRATIONS)
def test_the_same_judge_twice_orders_as_by_margin(verdicts: list[Verdict], calibration: Calibration | None) -> None:
    twice = [bounded(verdict, verdict, (calibration, calibration)) for verdict in verdicts]
    assert rank(twice, Rule.LOWER_BOUND) == rank(verdicts, Rule.MARGIN)
    assert rank(verdicts, Rule.LOWER_BOUND) == rank(verdicts, Rule.MARGIN)  # drafts, that one judge has seen


@given(first=VERDICTS, second=VERDICTS, calibrations=PAIRS)
def test_the_promise_is_the_smaller_of_both(
    first: Verdict, second: Verdict, calibrations: tuple[Calibration | None, Calibration | None]
) -> None:
    both = bounded(first, second, calibrations)
    promises = [probability(*one) for one in zip((first, second), calibrations, strict=True)]
    assert probability(both, calibrations[0]) == both.p_yes == pytest.approx(min(promises), abs=1e-12)
    assert both.yes is (first.answer == second.answer == "yes")


def test_a_verdict_has_both_or_neither() -> None:
    one = Verdict("yes", 1.0, 0.0)
    with pytest.raises(ValueError, match="the bound of both, or neither"):
        Verdict("yes", 1.0, 0.0, one)
    with pytest.raises(ValueError, match="a second one has none"):
        Verdict("yes", 1.0, 0.0, bounded(one, one), 1.0)
