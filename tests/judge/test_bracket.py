"""The knockout against the published script's loop, over ties, odd fields and every k."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bestofn.judge.bracket import Bracket, Decided, LiveKnockout, knockout, script_sub_brackets, sub_brackets, top_k
from bestofn.judge.verdict import Rule, Verdict, rank

LOGITS = st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0])
ANY_VERDICT = st.builds(
    Verdict, st.sampled_from(["yes", "no", "other"]), LOGITS | st.just(math.nan), LOGITS | st.just(math.nan)
)
VERDICTS = st.lists(st.builds(Verdict, st.sampled_from(["yes", "no"]), LOGITS, LOGITS), min_size=1, max_size=21)


def published_compare(verdicts: list[Verdict], a: int, b: int) -> int:
    """The script's comparison of the files a and b, b the later one, word for word."""
    if verdicts[a].answer == verdicts[b].answer:
        if verdicts[a].answer == "yes":
            return a if verdicts[a].yes_logit > verdicts[b].yes_logit else b
        return a if verdicts[a].no_logit < verdicts[b].no_logit else b
    return a if verdicts[a].answer == "yes" else b


def published_picks(verdicts: list[Verdict], k: int) -> list[int]:
    """The script's loop: powers of two, neighbours meet until k are left."""
    k = 2 ** (k.bit_length() - 1)
    files = list(range(2 ** (len(verdicts).bit_length() - 1)))
    while len(files) > k:
        files = [published_compare(verdicts, files[i], files[i + 1]) for i in range(0, len(files), 2)]
    return files


@given(verdicts=st.lists(ANY_VERDICT, min_size=1, max_size=21), data=st.data())
def test_script_picks_are_reproduced_even_where_it_has_no_order(verdicts: list[Verdict], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(verdicts)))
    assert [bracket.winner for bracket in script_sub_brackets(verdicts, k)] == published_picks(verdicts, k)


@given(verdicts=VERDICTS, k=st.sampled_from([1, 2, 4, 8]))
def test_sub_brackets_of_the_official_order_are_the_scripts(verdicts: list[Verdict], k: int) -> None:
    N = 2 ** (len(verdicts).bit_length() - 1)
    brackets = sub_brackets(range(N), rank(verdicts, Rule.OFFICIAL), min(k, N))
    assert brackets == script_sub_brackets(verdicts, min(k, N))


@given(verdicts=VERDICTS)
def test_every_match_is_decided_as_published(verdicts: list[Verdict]) -> None:
    bracket = knockout(range(len(verdicts)), rank(verdicts, Rule.OFFICIAL))
    for matches in bracket.rounds:
        for match in matches:
            expected = match.a if match.b is None else published_compare(verdicts, match.a, match.b)
            assert match.winner == expected


@pytest.mark.parametrize("rule", Rule)
@given(verdicts=VERDICTS)
def test_the_winner_is_the_best_of_the_order(rule: Rule, verdicts: list[Verdict]) -> None:
    N = len(verdicts)
    order = rank(verdicts, rule)
    bracket = knockout(range(N), order)
    assert bracket.winner == order[0]
    assert len(bracket.rounds) == (N - 1).bit_length()
    assert sum(match.b is not None for matches in bracket.rounds for match in matches) == N - 1
    assert Bracket.from_json(bracket.to_json()) == bracket
    field = list(range(N))
    for matches in bracket.rounds:
        assert [x for match in matches for x in (match.a, match.b) if x is not None] == field
        field = [match.winner for match in matches]


@pytest.mark.parametrize("rule", Rule)
@given(verdicts=st.lists(ANY_VERDICT, min_size=1, max_size=21), data=st.data())
def test_the_live_knockout_ends_as_the_bracket_whatever_the_order_of_the_verdicts(
    rule: Rule, verdicts: list[Verdict], data: st.DataObject
) -> None:
    N = len(verdicts)
    live, told = LiveKnockout(N, rule), []
    for candidate in data.draw(st.permutations(range(N))):
        told += live.judge(candidate, verdicts[candidate])
        assert live.judge(candidate, Verdict("no", 0.0, 0.0)) == []  # the first verdict counts
    rounds = knockout(range(N), rank(verdicts, rule)).rounds
    expected = [
        Decided(round, place, match) for round, matches in enumerate(rounds) for place, match in enumerate(matches)
    ]
    assert sorted(told, key=lambda decided: (decided.round, decided.place)) == expected


@given(verdicts=VERDICTS, data=st.data())
def test_top_k_is_the_head_of_the_order_and_sub_brackets_hold_the_best_of_each_share(
    verdicts: list[Verdict], data: st.DataObject
) -> None:
    N = len(verdicts)
    k = data.draw(st.integers(1, N))
    order = rank(verdicts)
    assert top_k(range(N), order, k) == order[:k]
    brackets = sub_brackets(range(N), order, k)
    assert len(brackets) == k
    assert order[0] in {bracket.winner for bracket in brackets}


def test_a_field_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one entrant"):
        knockout([], [0, 1])
    with pytest.raises(ValueError, match="named twice"):
        knockout([0, 0], [0, 1])
    with pytest.raises(ValueError, match=r"not the entrants \[7\]"):
        knockout([0, 7], [0, 1])
    with pytest.raises(ValueError, match="between 1 and the 2 entrants, got 3"):
        top_k([0, 1], [0, 1], 3)
