"""The finals: who meets, what that changes in the ranks, and jobs that end with them, here and on workers."""

import random
import signal
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bestofn.judge.pairwise import Answer, Answers, Rounds, knockout
from bestofn.judge.verdict import Rule, Verdict
from bestofn.service.engine.fake import FakeEngine, fake_picture
from bestofn.service.errors import InvalidRequest
from bestofn.service.finals import FinalsOutcome, entrants, not_played, played, reordered
from bestofn.service.images import decode
from bestofn.service.jobs import Candidate, HeatOutcome, JobSpec, JobStatus, Revision, Usage
from bestofn.service.local import LocalRun, local_spec, run_local
from bestofn.service.result import assemble, best_of, ranked
from bestofn.service.schemas import GenerateRequest
from bestofn.service.settings import Settings
from bestofn.service.vision_judge import VisionJudge
from tests.service.vision_server import Vision, brightness, vision_server

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


REQUEST = {"prompt": "a ring", "num_samples": 24, "seed": 3, "top_k": 2, "finals": {"most": 4, "band": 8.0}}


def score_of(seed: int) -> float:
    """What the vision server thinks of the fake engine's picture of this seed."""
    return brightness("", fake_picture(seed, 64, 64))


def local(vision: Vision, attempts: int = 5, **fields: object) -> LocalRun:
    engine = FakeEngine(slots=16)
    spec = local_spec(GenerateRequest.model_validate(REQUEST | fields), engine, Settings(finals_judge=vision.url))
    return run_local(spec, engine, judge=VisionJudge(vision.url, vision.key, attempts))


@pytest.fixture
def vision() -> Iterator[Vision]:
    with vision_server() as server:
        yield server


def test_the_pairwise_judge_chooses_among_the_leaders_of_a_local_job(vision: Vision) -> None:
    run = local(vision)
    by_verdict = local(vision, finals=None).result
    leaders = sorted(by_verdict.candidates, key=lambda candidate: candidate.rank)[:4]
    best = max(leaders, key=lambda candidate: score_of(candidate.seed))
    result = run.result
    assert result.finals is not None
    assert result.usage is not None
    assert (result.images[0].candidate, len(result.images), result.usage.pairwise_calls) == (best.index, 2, 6)
    assert result.images[0].candidate != by_verdict.images[0].candidate
    assert list(run.images) == [image.candidate for image in result.images]
    assert decode(run.images[best.index]).getpixel((0, 0)) == fake_picture(best.seed, 1, 1).getpixel((0, 0))
    assert result.bracket == by_verdict.bracket
    assert {call["prompt"] for call in vision.calls} == {"a ring"}
    vision.mode = "first"  # in love with a place: nothing changes
    biased = local(vision).result
    assert biased.images == [
        image.model_copy(update={"url": biased.images[i].url}) for i, image in enumerate(by_verdict.images)
    ]


def test_nobody_meets_where_the_leader_is_alone(vision: Vision) -> None:
    result = local(vision, finals={"band": 0.0}).result
    assert (result.finals, result.warnings, vision.calls) == (None, [], [])


def test_a_judge_that_is_away_leaves_the_verdicts_order(vision: Vision) -> None:
    vision.failures = 1000
    result = local(vision, attempts=2).result
    assert (result.status, result.complete, result.finals) == (JobStatus.SUCCEEDED, True, None)
    assert result.images[0].candidate == local(vision, finals=None).result.images[0].candidate
    assert result.warnings == [
        "the finals were not played: the pairwise judge looker could not be asked; the ranks are those of the verdicts"
    ]


def test_ctrl_c_and_the_deadline_end_finals_that_hang(vision: Vision) -> None:
    vision.pause.clear()
    result = local(vision, deadline_seconds=1.0).result
    assert (result.status, result.stopped, result.finals, len(result.images)) == ("succeeded", "deadline", None, 2)
    assert "deadline passed before" in result.warnings[-1]
    threading.Timer(0.5, signal.raise_signal, [signal.SIGINT]).start()
    assert local(vision).result.status is JobStatus.CANCELED


def test_finals_without_a_judge_are_refused() -> None:
    engine = FakeEngine(slots=4)
    with pytest.raises(InvalidRequest, match="BESTOFN_FINALS_JUDGE") as refused:
        local_spec(GenerateRequest.model_validate(REQUEST), engine, Settings())
    assert refused.value.field == "finals"
