"""A calibration promises what comes true, of leaders too; a fit is finite whatever it is given."""

import json
import math

import numpy as np
import pytest

from bestofn.judge.calibration import Calibration, probability, read
from bestofn.judge.verdict import Verdict
from bestofn.training.judge.calibration_fit import Leaders, calibrate, calibration_error, fit

TRUE = Calibration(temperature=2.5, bias=-0.8, ceiling=0.94)


def drawn(prompts, samples, seed, true=TRUE):
    """Images whose leaders are right as `true` says: chance is a matter of the prompt, as blind spots are."""
    rng = np.random.default_rng(seed)
    fields = []
    for _ in range(prompts):
        margins = rng.normal(rng.normal(0, 4), 3, samples)
        luck = rng.random()
        fields.append([(float(m), bool(true.p(float(m)) > luck)) for m in margins])
    return fields


def test_a_fit_finds_what_was_true_and_says_how_well_on_prompts_it_has_not_seen():
    report = calibrate(drawn(4000, 32, 2))
    found = report.calibration
    assert found.temperature == pytest.approx(TRUE.temperature, rel=0.15)
    assert found.bias == pytest.approx(TRUE.bias, abs=0.2)
    assert found.ceiling == pytest.approx(TRUE.ceiling, abs=0.01)
    assert calibration_error(report.table) < 0.02 < 0.1 < calibration_error(report.before)
    assert sum(row.count for row in report.table) == sum(row.count for row in report.before) == 4000 * (8 + 4 + 2 + 1)


def test_leaders_are_the_best_of_blocks_and_each_size_weighs_the_same():
    field = [(float(i % 5), i % 5 == 4) for i in range(9)]
    leaders = Leaders.of([field, [(1.0, True), (math.nan, False), (2.0, False)], [(math.nan, True)]])
    assert leaders.margin.tolist() == [3.0, 4.0, 4.0, 2.0]  # of two blocks of 4, one of 8; one of 3; none
    assert leaders.correct.tolist() == [0, 1, 1, 0]
    assert leaders.weight.tolist() == [0.5, 0.5, 1, 1]


@pytest.mark.parametrize(
    "field",
    [[(3.0, True)], [(2.0, True), (-2.0, False)], [(-9.0, False)] * 3, [(80.0, True), (-80.0, False)] * 50],
    ids=["one", "separable", "all wrong", "far apart"],
)
def test_little_or_separable_data_give_a_finite_fit(field):
    found = fit(Leaders.of([[one] for one in field]))
    assert 0 < found.temperature < 10
    assert abs(found.bias) < 10
    for margin, correct in field:
        assert (found.p(margin) > 0.5) == correct


def test_a_judge_that_is_wrong_way_round_is_refused():
    with pytest.raises(ValueError, match="cannot be calibrated"):
        calibrate([[(float(m), m < 0)] for m in range(-50, 50)])
    with pytest.raises(ValueError, match="no images"):
        calibrate([[(math.nan, True)]])


def test_calibrated_verdict_promises_its_probability():
    yes = Verdict("yes", 3.0, 1.0)
    assert probability(yes, None) == yes.p_yes
    assert probability(yes, TRUE) == pytest.approx(0.94 / (1 + math.exp(-(2 / 2.5 - 0.8))))
    assert probability(Verdict("other", 9.0, 1.0), None) == probability(Verdict("yes", math.inf, 0.0), TRUE) == 0.0
    assert Calibration(1e-3, 0.0).p(-9000.0) == 0.0


def test_a_margin_above_the_even_one_is_a_yes():
    assert TRUE.log_odds(TRUE.even_margin) == pytest.approx(0, abs=1e-12)
    assert TRUE.p(TRUE.even_margin + 1e-6) > 0.5 > TRUE.p(TRUE.even_margin - 1e-6)
    assert Calibration(2.0, 3.0).even_margin == -6.0
    assert Calibration(1.0, 0.0, ceiling=0.5).even_margin == math.inf


def test_calibration_that_is_not_there_is_named_with_what_writes_it(tmp_path):
    with pytest.raises(ValueError, match=r"none.json cannot be read \(No such file or directory\): write it with"):
        read(tmp_path / "none.json")


def test_a_file_is_read_for_its_own_judge_only(tmp_path):
    path = tmp_path / "calibration.json"
    report = calibrate(drawn(40, 4, 2))
    path.write_text(json.dumps(report.to_json("abc", "labels.jsonl")))
    assert read(path, "abc") == report.calibration
    with pytest.raises(ValueError, match="fitted for the judge's revision abc"):
        read(path, "def")
    path.write_text('{"judge": "abc", "temperature": 0, "bias": 0, "ceiling": 1}')
    with pytest.raises(ValueError, match="positive temperature"):
        read(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="no calibration"):
        read(path)
