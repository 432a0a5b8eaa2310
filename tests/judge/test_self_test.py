"""The start-up test of judges: the embedded one passes, and each fault is named."""

import math

import pytest

from bestofn.judge.judge import Judge
from bestofn.judge.self_test import self_test
from bestofn.judge.verdict import BROKEN, Verdict


class Recorded(Judge):
    """A judge that gives verdicts in turn, whatever it sees."""

    def __init__(self, *verdicts: Verdict) -> None:
        self._verdicts = list(verdicts)

    def ask(self, images, prompts, **options):
        return images

    def verdict(self, row):
        return self._verdicts.pop(0)


def test_the_embedded_judge_passes() -> None:
    assert self_test(Judge.load()) is None


@pytest.mark.parametrize(
    ("verdicts", "fault"),
    [
        ((Verdict("yes", 1.0, 0.5), Verdict("yes", 1.0, 0.5)), "gets 0.500 and a blue square 0.500"),
        ((Verdict("no", 0.0, 1.0), Verdict("yes", 1.0, 0.0)), "the first must be greater"),
        ((Verdict("other", 2.0, 0.0), Verdict("no", 0.0, 1.0)), "neither yes nor no"),
        ((BROKEN, Verdict("no", 0.0, 1.0)), "it gives no verdict"),
        ((Verdict("yes", 2.0, 0.0), Verdict("no", math.nan, 1.0)), "it gives no verdict"),
    ],
)
def test_a_fault_is_named(verdicts: tuple[Verdict, ...], fault: str) -> None:
    assert fault in str(self_test(Recorded(*verdicts)))
