"""The finals: who meets, what that changes in the ranks, and jobs that end with them, here and on workers."""

import random

from hypothesis import given
from hypothesis import strategies as st

from bestofn.judge.pairwise import Answer, Answers, Rounds, knockout
from bestofn.judge.verdict import Rule, Verdict
from bestofn.service.finals import FinalsOutcome, entrants, not_played, played, reordered
from bestofn.service.jobs import Candidate, HeatOutcome, JobSpec, JobStatus, Revision, Usage
from bestofn.service.result import assemble, best_of, ranked

PIN = Revision(name="fake", revision="0")
VERDICTS = st.builds(
    Verdict,
    st.sampled_from(["yes", "no", "other"]),
    st.sampled_from([-2.0, 0.0, 0.5, 1.0, float("nan")]),
    st.sampled_from([-1.0, 0.0]),
)


def spec(num_samples: int, **fields: object) -> JobSpec:
    defaults = {
        "id": "j", "prompt": "a ring", "num_samples": num_samples, "seed": 7, "width": 64, "height": 64,
        "num_inference_steps": 4, "guidance_scale": 4.0, "model": PIN, "judge": PIN,
    }  # fmt: skip
    return JobSpec.model_validate(defaults | fields)


def decided(order: list[int], judge: dict[int, float]) -> Rounds:
    """The knockout as a judge would decide it who prefers the greater number."""
    game = knockout(order)
    try:
        pairings = next(game)
        while True:
            said: list[Answers] = []
            for p in pairings:
                assert p.b is not None
                a = judge[p.a] > judge[p.b]
                said.append((Answer("first" if a else "second"), Answer("second" if a else "first")))
            pairings = game.send(said)
    except StopIteration as end:
        rounds: Rounds = end.value
        return rounds


@given(
    st.lists(VERDICTS, min_size=1, max_size=30),
    st.integers(2, 8),
    st.sampled_from([0.0, 0.5, 3.0]),
    st.sampled_from([Rule.MARGIN, Rule.OFFICIAL]),
    st.integers(1, 3),
    st.randoms(),
)
def test_only_those_in_the_band_change_places_and_their_winner_is_first(
    verdicts: list[Verdict], most: int, band: float, rule: Rule, top_k: int, random: random.Random
) -> None:
    N = len(verdicts)
    job = spec(N, finals={"most": most, "band": band}, rule=rule, top_k=min(top_k, N), heat_size=4)
    candidates = [Candidate(i, 7 + i, verdict) for i, verdict in enumerate(verdicts)]
    order = ranked(job, candidates)
    meet = entrants(job, order)
    assert len(meet) != 1
    assert len(meet) <= most
    assert meet == entrants(job, best_of(job, candidates))  # those in play are enough to know
    if meet:
        assert meet[0] == order[0]
        assert all(order[0].verdict.margin - c.verdict.margin <= band for c in meet)
        assert not any(c.verdict.broken or c.verdict.answer == "other" for c in meet)
    judge = dict(zip(range(N), random.sample(range(N), N), strict=True))
    finals = played("m", decided([c.index for c in meet], judge)) if meet else not_played("m", "nobody was close")
    assert FinalsOutcome.from_json(finals.to_json()) == finals
    after = reordered(order, finals)
    assert sorted(c.index for c in after) == list(range(N))
    assert [c for c in after if c not in meet] == [c for c in order if c not in meet]
    assert {order.index(c) for c in meet} == {after.index(c) for c in meet}
    outcomes = [
        HeatOutcome(heat.index, tuple(candidates[i] for i in heat.candidates), {}, Usage(heat.count))
        for heat in job.heats()
    ]
    result = assemble(job, JobStatus.SUCCEEDED, outcomes, finals=finals)
    assert result.usage is not None
    assert result.usage.pairwise_calls == (2 * (len(meet) - 1) if meet else 0)
    assert [image.candidate for image in result.images] == [c.index for c in after[: job.top_k]]
    assert {image.candidate for image in result.images} <= {c.index for c in best_of(job, candidates)}
    assert [after[c.rank - 1].index for c in result.candidates] == list(range(N))
    if N > 1:
        assert result.bracket[-1][0].winner == order[0].index
    if meet:
        assert after[0].index == max((c.index for c in meet), key=judge.__getitem__)
        assert result.finals is not None
        assert result.finals.rounds[-1][-1].winner == after[0].index
    else:
        assert (result.finals, after) == (None, order)
        assert "nobody was close" in result.warnings[-1]


def test_a_deadline_before_the_finals_is_said_where_some_would_have_met() -> None:
    job = spec(2, finals={}, deadline_seconds=3)
    for margin, said in ((0.5, True), (5.0, False)):
        verdicts = Verdict("yes", 1.0, 0.0), Verdict("yes", 1.0 + margin, 0.0)
        judged = tuple(Candidate(i, 7 + i, verdict) for i, verdict in enumerate(verdicts))
        outcomes = [HeatOutcome(0, judged, {}, Usage(2))]
        result = assemble(job, JobStatus.SUCCEEDED, outcomes, stopped="deadline")
        assert any("finals were not played" in warning for warning in result.warnings) is said
