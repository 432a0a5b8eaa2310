"""Several judges as one: the mean of calibrated log-odds."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bestofn.judge.calibration import Calibration
from bestofn.judge.mixture import mixed
from bestofn.judge.names import members, mixture_name, parse_name
from bestofn.judge.verdict import BROKEN, Rule, Verdict, rank

MARGINS = st.lists(st.floats(-20, 20), min_size=2, max_size=2)


def test_the_mean_is_of_calibrated_log_odds() -> None:
    verdicts = [Verdict("yes", 3.0, 1.0), Verdict("no", 10.0, 14.0)]
    assert mixed(verdicts, [1, 1], [None, None]).margin == -1.0
    verdict = mixed(verdicts, [3, 1], [None, Calibration(2.0, 4.0)])
    assert (verdict.answer, verdict.margin) == ("yes", 2.0)
    assert mixed([verdicts[0], BROKEN], [1, 1], [None, None]) is BROKEN


@given(st.lists(MARGINS, min_size=1, max_size=6), st.floats(0.1, 5))
def test_equal_judges_rank_as_one_does_whatever_their_weights(rows: list[list[float]], weight: float) -> None:
    alone = [Verdict("yes", row[0], 0.0) for row in rows]
    both = [mixed([one, one], [1, weight], [None, None]) for one in alone]
    assert [one.margin for one in both] == pytest.approx([one.margin for one in alone])
    best = rank(both, Rule.MARGIN)[0]
    assert math.isclose(alone[best].margin, max(one.margin for one in alone), abs_tol=1e-9)


def test_names_of_mixtures() -> None:
    assert members("shapes") == [(1.0, "shapes")]
    assert members("shapes + 0.5*clip:owner/pick@main") == [(1.0, "shapes"), (0.5, "clip:owner/pick@main")]
    assert parse_name("shapes + http://host/a+b").kind == "mixture"
    assert parse_name("http://host/a+b").kind == "http"
    assert members("./a*b + 2 *  clip:./a*b") == [(1.0, "./a*b"), (2.0, "clip:./a*b")]


@given(st.lists(st.tuples(st.floats(0, exclude_min=True, allow_infinity=False), st.just("a*b")), min_size=2))
def test_weights_survive_their_name(parts: list[tuple[float, str]]) -> None:
    assert members(mixture_name(parts)) == parts
