"""The scaling curve against what it must be, and a pool that goes on where it was cut off."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bestofn.service.evaluation.curve import auc, chosen, curve, share_of_the_way, sizes

CORRECT = arrays(np.float64, (6, 8), elements=st.sampled_from([0.0, 1.0]))
TAGS = ["a", "a", "a", "b", "b", "b"]


@given(CORRECT, st.integers(0, 99))
def test_oracle_bounds_every_judge_and_never_falls_with_n(correct, seed):
    margin = np.random.default_rng(seed).normal(size=correct.shape)
    points = curve(correct, margin, TAGS)
    assert [point.n for point in points] == [1, 2, 4, 8]
    assert points[0].judge == pytest.approx(points[0].oracle) == pytest.approx(points[0].random)
    for before, after in itertools.pairwise(points):
        assert after.oracle >= before.oracle - 1e-12
    for point in points:
        assert max(point.judge, point.random) <= point.oracle + 1e-12


@given(CORRECT)
def test_a_perfect_judge_goes_all_the_way_and_a_perverse_one_backwards(correct):
    perfect, perverse = curve(correct, correct, TAGS), curve(correct, -correct, TAGS)
    assert [point.judge for point in perfect] == [point.oracle for point in perfect]
    assert perverse[-1].judge <= perverse[0].judge
    if perfect[-1].oracle > perfect[0].oracle:
        assert share_of_the_way(perfect) == pytest.approx(1)


def test_blocks_are_disjoint_and_ties_go_to_the_earlier():
    score = np.array([[1.0, 1.0, 0.0, 2.0, np.nan, 0.0]])
    assert chosen(score, 2).tolist() == [[0, 3, 5]]
    assert chosen(score, 4).tolist() == [[3]]
    assert sizes(32) == [1, 2, 4, 8, 16, 32]


def test_auc_counts_within_prompts_only():
    correct = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert auc(correct, np.array([[2.0, 1.0], [5.0, 6.0], [0.0, 0.0]])) == 1.0
    assert auc(correct, np.array([[2.0, 2.0], [6.0, 5.0], [0.0, 0.0]])) == 0.25


def test_a_pool_goes_on_where_it_was_cut_off(tmp_path):
    from bestofn.judge.judge import EMBEDDED
    from bestofn.models.checkpoint import Checkpoint
    from bestofn.service.evaluation import pool, report

    model = Checkpoint.resolve("shapes")
    source = pool.Source(str(model.path), model.revision, str(EMBEDDED), "j", 2)
    seen = []
    rows = pool.fill(tmp_path / "pool.jsonl", source, 6, 1, lambda done, wanted: seen.append((done, wanted)))
    assert seen[-1] == (6, 6)
    whole = (tmp_path / "pool.jsonl").read_text().splitlines()
    (tmp_path / "pool.jsonl").write_text("\n".join(whole[:-1]) + "\n" + whole[-1][:40])
    again = pool.fill(tmp_path / "pool.jsonl", source, 6, 1, lambda done, wanted: seen.append((done, wanted)))
    assert again == rows
    assert seen[len(seen) - 2] == (5, 6)  # only the line that was cut off is drawn again
    figures = report.summary(again, source, "a test")
    report.write(tmp_path, figures)
    assert json.loads((tmp_path / "scaling.json").read_text())["prompts"] == 6
    assert "mean, oracle" in report.table(figures)
    with pytest.raises(ValueError, match="choose another --out"):
        pool.fill(tmp_path / "pool.jsonl", pool.Source("x", "x", "x", "x", 2), 6, 1, lambda done, wanted: None)
