"""The pairwise judge: its question keeps control tokens out, its replies are read, and no place wins a knockout."""

import math
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bestofn.judge.pairwise import Answers, Rounds, decide, knockout, question, ranking, read_answer


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("A", "first"), (" b.", "second"), ("**B**", "second"), ("Answer: A", "first"), ("(A) because ...", "first"),
        ("Image B", "second"), ("A red star is in both", None), ("Both", None), ("", None), ("<think>", None),
    ],
)  # fmt: skip
def test_a_letter_is_an_answer_and_a_sentence_is_none(text: str, choice: str | None) -> None:
    assert read_answer(text, {}) == choice


def test_log_probabilities_of_all_spellings_count_and_an_even_answer_is_none() -> None:
    assert read_answer("B", {"A": math.log(0.3), " A": math.log(0.3), "B": math.log(0.4)}) == "first"
    assert read_answer("A", {"A": -1.0, "B": -1.0}) is None
    assert read_answer("A", {"The": -0.1, "B": math.nan}) == "first"


@given(st.text() | st.lists(st.sampled_from(["<", "|", "im_end", "|>", "image>", "[", "IMG]", " "])).map("".join))
def test_no_prompt_opens_a_token(prompt: str) -> None:
    asked = question(prompt)
    assert not re.search(r"[<\[]\S", asked)
    assert asked.endswith("B for the second.")


def play(order: list[int], judge: object) -> Rounds:
    """A whole knockout; `judge(first, second)` is the choice."""
    game = knockout(order)
    try:
        pairings, _ = next(game)
        while True:
            answers: list[Answers] = [
                (judge(a, b), judge(b, a))  # type: ignore[operator]
                for a, b in pairings
            ]
            pairings, _ = game.send(answers)
    except StopIteration as end:
        rounds: Rounds = end.value
        return rounds


@given(st.integers(1, 33), st.randoms())
def test_a_consistent_judge_gets_its_best_and_one_who_loves_a_place_changes_nothing(
    N: int, random: random.Random
) -> None:
    order = random.sample(range(100), N)
    quality = dict(zip(order, random.sample(range(N), N), strict=True))
    rounds = play(order, lambda a, b: "first" if quality[a] > quality[b] else "second")
    ranks = ranking(order, rounds)
    assert ranks[0] == max(order, key=quality.__getitem__)
    assert sorted(ranks) == sorted(order)
    assert sum(match.b is not None for matches in rounds for match in matches) == N - 1
    assert not any(match.draw for matches in rounds for match in matches)
    if N > 1:  # whoever lost the last match is second
        last = rounds[-1][-1]
        assert {ranks[0], ranks[1]} == {last.a, last.b}
    for choice in ("first", "second", None):
        rounds = play(order, lambda a, b, choice=choice: choice)
        assert all(match.draw for matches in rounds for match in matches if match.b is not None)
        assert ranking(order, rounds)[0] == order[0]


def test_the_best_meets_the_last_and_an_odd_number_gives_the_best_a_bye() -> None:
    rounds = play([4, 3, 2, 1, 0], lambda a, b: "first" if a > b else "second")
    assert [[(match.a, match.b) for match in matches] for matches in rounds] == [
        [(4, None), (3, 0), (2, 1)],
        [(4, None), (3, 2)],
        [(4, 3)],
    ]
    assert decide((1, 2), ("second", "first")).winner == 2
    assert decide((1, 2), ("second", None)).answers == (2, None)
    for wrong in ([], [1, 1]):
        with pytest.raises(ValueError, match="each once"):
            next(knockout(wrong))
