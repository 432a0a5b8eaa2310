"""Both orders over verdicts, against the published comparison and over broken numbers."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bestofn.judge.verdict import Answer, Rule, Verdict, rank

# A coarse grid of logits makes ties common, as half precision does.
LOGITS = st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0])
ANY_LOGIT = LOGITS | st.sampled_from([math.nan, math.inf, -math.inf])
VERDICTS = st.builds(Verdict, st.sampled_from(["yes", "no", "other"]), ANY_LOGIT, ANY_LOGIT)


@pytest.mark.parametrize("rule", Rule)
@given(verdicts=st.lists(VERDICTS, max_size=12))
def test_rank_is_a_total_order_that_json_keeps(rule: Rule, verdicts: list[Verdict]) -> None:
    order = rank(verdicts, rule)
    assert sorted(order) == list(range(len(verdicts)))
    text = json.dumps([verdict.to_json() for verdict in verdicts], allow_nan=False)
    assert rank([Verdict.from_json(fields) for fields in json.loads(text)], rule) == order
    groups = [3 if (v := verdicts[i]).broken else 2 if v.answer == "other" else 1 for i in order]
    assert groups == sorted(groups)


@given(verdicts=st.lists(st.builds(Verdict, st.sampled_from(["yes", "no"]), LOGITS, LOGITS), min_size=1, max_size=12))
def test_margin_order_is_by_log_odds_and_ties_go_to_the_earlier(verdicts: list[Verdict]) -> None:
    order = rank(verdicts, Rule.MARGIN)
    margins = [verdicts[i].margin for i in order]
    assert margins == sorted(margins, reverse=True)
    assert all(i < j for i, j in pairwise(order) if verdicts[i].margin == verdicts[j].margin)


def test_official_order_puts_yes_first_and_ties_to_the_later() -> None:
    verdicts = [
        Verdict("no", 1.0, 2.0),
        Verdict("yes", 3.0, 1.0),
        Verdict("other", 9.0, -9.0),
        Verdict("no", 5.0, 1.0),
        Verdict("yes", 3.0, -4.0),
        Verdict("yes", math.nan, 0.0),
    ]
    assert rank(verdicts, Rule.OFFICIAL) == [4, 1, 3, 0, 2, 5]


@pytest.mark.parametrize(
    ("margin", "p_yes"), [(0.0, 0.5), (math.log(3), 0.75), (1e4, 1.0), (-1e4, 0.0)], ids=["even", "3:1", "far", "-far"]
)
def test_p_yes_is_the_sigmoid_of_the_margin(margin: float, p_yes: float) -> None:
    assert Verdict("yes", margin, 0.0).p_yes == pytest.approx(p_yes, abs=1e-12)


@pytest.mark.parametrize(
    "fields",
    [{"answer": "maybe", "yes_logit": 0, "no_logit": 0}, {"answer": "yes", "yes_logit": 0}, {"answer": "no"}],
)
def test_unreadable_verdicts_are_refused(fields: dict[str, Answer | int]) -> None:
    with pytest.raises(ValueError, match="verdict"):
        Verdict.from_json(fields)
