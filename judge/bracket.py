"""The knockout tournament over candidates, round by round, from a total order, without torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bestofn.judge.verdict import Rule, Verdict, rank, script_prefers_first


@dataclass(frozen=True, slots=True)
class Match:
    """Two candidates who met, by index, and which of them went on; `b` is None for a bye, which `a` wins."""

    a: int
    b: int | None
    winner: int


@dataclass(frozen=True, slots=True)
class Bracket:
    """A knockout: its rounds in order, each a tuple of matches, and the candidate left at the end.

    The winners of one round, in order, are the entrants of the next. A single entrant wins without a round.
    """

    rounds: tuple[tuple[Match, ...], ...]
    winner: int

    def to_json(self) -> dict[str, Any]:
        """`{"rounds": [[{"a": 0, "b": 1, "winner": 1}, ...], ...], "winner": 1}`."""
        rounds = [[asdict(match) for match in matches] for matches in self.rounds]
        return {"rounds": rounds, "winner": self.winner}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Bracket:
        """Reads what `to_json` wrote."""
        rounds = tuple(tuple(Match(**match) for match in matches) for matches in fields["rounds"])
        return cls(rounds, fields["winner"])


def knockout(entrants: Sequence[int], order: Sequence[int]) -> Bracket:
    """Plays neighbours against each other until one is left.

    Neighbours in `entrants` meet: first with second, third with fourth. If a round has an odd number of
    entrants, the last has a bye. The order is total, so the winner is the best entrant whatever the pairing,
    and no verdict is asked for twice.

    Args:
        entrants: candidates in the order of the draw, normally by index.
        order: all candidates, best first (`verdict.rank`).

    Raises:
        ValueError: no entrants, one entered twice, or one that the order does not hold.
    """
    place = _places(entrants, order)
    return _play(entrants, lambda a, b: min(a, b, key=place.__getitem__))


@dataclass(frozen=True, slots=True)
class Decided:
    """A match with its position: `rounds[round][place]` of the bracket."""

    round: int
    place: int
    match: Match


class LiveKnockout:
    """The knockout over candidates 0 to N - 1 while verdicts still come in, in any order: each match as it is decided.

    Neighbours meet as in `knockout`, so that all matches together are its bracket.
    """

    def __init__(self, N: int, rule: Rule) -> None:
        """Raises ValueError if there are no candidates."""
        if N < 1:
            raise ValueError(f"a knockout needs at least one entrant, got {N}")
        self._rule = rule
        self._verdicts: dict[int, Verdict] = {}
        self._fields: list[list[int | None]] = [[None] * N]  # who entered each round; None: not known yet
        while (n := len(self._fields[-1])) > 1:
            self._fields.append([None] * ((n + 1) // 2))

    def judge(self, candidate: int, verdict: Verdict) -> list[Decided]:
        """Takes a candidate's verdict, the first that comes, and returns the matches that it decides, earlier first."""
        if candidate in self._verdicts:
            return []
        self._verdicts[candidate] = verdict
        self._fields[0][candidate] = candidate
        decided, place = [], candidate
        for round, (field, following) in enumerate(zip(self._fields, self._fields[1:], strict=False)):
            place //= 2
            match = self._play(field[2 * place : 2 * place + 2])
            if match is None:
                break
            following[place] = match.winner
            decided.append(Decided(round, place, match))
        return decided

    def _play(self, pair: Sequence[int | None]) -> Match | None:
        a, b = (*pair, None)[:2]
        if a is None or (b is None and len(pair) == 2):
            return None
        if b is None:
            return Match(a, None, a)
        first, *_ = rank([self._verdicts[a], self._verdicts[b]], self._rule)
        return Match(a, b, (a, b)[first])


def top_k(entrants: Sequence[int], order: Sequence[int], k: int) -> list[int]:
    """The k best entrants, best first: the true top k, which a knockout alone does not find.

    Raises:
        ValueError: k is not between 1 and the number of entrants, or the entrants do not fit the order.
    """
    place = _places(entrants, order)
    _check_k(k, len(entrants))
    return sorted(entrants, key=place.__getitem__)[:k]


def sub_brackets(entrants: Sequence[int], order: Sequence[int], k: int) -> tuple[Bracket, ...]:
    """k knockouts over contiguous shares of the entrants, as equal in size as can be.

    For powers of two this is a knockout stopped when k are left, as published. Its winners are the best of
    each share, not the top k.

    Raises:
        ValueError: as `top_k`.
    """
    _check_k(k, len(entrants))
    N = len(entrants)
    return tuple(knockout(entrants[j * N // k : (j + 1) * N // k], order) for j in range(k))


def script_sub_brackets(verdicts: Sequence[Verdict], k: int) -> tuple[Bracket, ...]:
    """Brackets of the published script, its peculiarities included; for parity only.

    The script (NVlabs/Sana, tools/inference_scaling/nvila_sana_pick.py) drops candidates from the end until their
    number is a power of two. It lowers k to a power of two and asks `script_prefers_first` match by match. That is not
    transitive where an answer is neither yes nor no. Without such answers this is `sub_brackets` of the
    truncated field under the official rule.

    Raises:
        ValueError: k is not between 1 and the number of verdicts.
    """
    _check_k(k, len(verdicts))
    N, k = _power_of_two_below(len(verdicts)), _power_of_two_below(k)

    def winner(a: int, b: int) -> int:
        return a if script_prefers_first(verdicts[a], verdicts[b]) else b

    return tuple(_play(range(j * N // k, (j + 1) * N // k), winner) for j in range(k))


def _power_of_two_below(n: int) -> int:
    return 1 << (n.bit_length() - 1)


def _play(entrants: Sequence[int], winner: Callable[[int, int], int]) -> Bracket:
    rounds: list[tuple[Match, ...]] = []
    field = list(entrants)
    while len(field) > 1:
        matches = [Match(a, b, winner(a, b)) for a, b in zip(field[::2], field[1::2], strict=False)]
        if len(field) % 2:
            matches.append(Match(field[-1], None, field[-1]))
        rounds.append(tuple(matches))
        field = [match.winner for match in matches]
    return Bracket(tuple(rounds), field[0])


def _check_k(k: int, N: int) -> None:
    if not 1 <= k <= N:
        raise ValueError(f"the number of winners must be between 1 and the {N} entrants, got {k}")


def _places(entrants: Sequence[int], order: Sequence[int]) -> dict[int, int]:
    if not entrants:
        raise ValueError("a knockout needs at least one entrant")
    if len(set(entrants)) != len(entrants):
        raise ValueError(f"an entrant is named twice among {len(entrants)} entrants")
    place = {candidate: i for i, candidate in enumerate(order)}
    missing = [candidate for candidate in entrants if candidate not in place]
    if missing:
        raise ValueError(f"the order ranks {len(place)} candidates but not the entrants {missing[:8]}")
    return place
