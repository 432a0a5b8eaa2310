"""The finals: who meets, what that changes in the ranks, and jobs that end with them, here and on workers."""

import asyncio
import os
import random
import signal
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as bounds
from hypothesis import strategies as st

from bestofn.judge.pairwise import Answers, Rounds, knockout
from bestofn.judge.verdict import Rule, Verdict
from bestofn.service.core.early_stopping import Prefix, fold
from bestofn.service.core.errors import InvalidRequest
from bestofn.service.core.finals import FinalsOutcome, entrants, not_played, played, reordered
from bestofn.service.core.jobs import Candidate, Finals, Heat, HeatOutcome, JobSpec, JobStatus, Revision, Stop, Usage
from bestofn.service.core.results import assemble, best_of, ranked
from bestofn.service.core.schemas import FinalsProgress, GenerateRequest, JobResult
from bestofn.service.core.settings import Settings
from bestofn.service.engine.fake import FakeEngine, fake_image
from bestofn.service.media.codec import decode
from bestofn.service.pairwise.openai_judge import VisionJudge
from bestofn.service.queue.claims import Claim, HeatProgress
from bestofn.service.queue.consumer import QueueConsumer
from bestofn.service.queue.job_queue import Queue
from bestofn.service.worker.local import LocalRun, local_spec, run_local
from bestofn.service.worker.worker import Worker
from tests.service.core.test_early_stopping import drawn, outcome_of
from tests.service.pairwise.vision_server import Vision, brightness, vision_server
from tests.waiting import DEADLINES, PATIENCE, events_of, until

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
        pairings, _ = next(game)
        while True:
            said: list[Answers] = []
            for a, b in pairings:
                better = judge.get(a, 0) >= judge.get(b, 0)
                said.append(("first", "second") if better else ("second", "first"))
            pairings, _ = game.send(said)
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
def test_finals_reorder_only_images_within_the_margin_and_their_winner_is_first(
    verdicts: list[Verdict], most: int, band: float, rule: Rule, top_k: int, random: random.Random
) -> None:
    N = len(verdicts)
    job = spec(N, finals={"max_entrants": most, "margin": band}, rule=rule, top_k=min(top_k, N), heat_size=4)
    candidates = [Candidate(i, 7 + i, verdict) for i, verdict in enumerate(verdicts)]
    order = ranked(job, candidates)
    meet = entrants(job, order)
    assert len(meet) != 1
    assert len(meet) <= most
    assert meet == entrants(job, best_of(job, candidates))  # those in play are enough to know
    if meet:
        assert meet[0] == order[0]
        assert all(order[0].verdict.margin - c.verdict.margin <= band for c in meet)
        assert all(c.verdict.usable for c in meet)
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


REQUEST = {"prompt": "a ring", "num_samples": 24, "seed": 3, "top_k": 2, "finals": {"max_entrants": 4, "margin": 8.0}}


def score_of(seed: int) -> float:
    """What the vision server thinks of the fake engine's image of this seed."""
    return brightness("", fake_image(seed, 64, 64))


def local(vision: Vision, attempts: int = 5, **fields: object) -> LocalRun:
    engine = FakeEngine(slots=16)
    spec = local_spec(GenerateRequest.model_validate(REQUEST | fields), engine, Settings(pairwise_judge=vision.url))
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
    assert decode(run.images[best.index]).getpixel((0, 0)) == fake_image(best.seed, 1, 1).getpixel((0, 0))
    assert result.bracket == by_verdict.bracket
    assert {call["prompt"] for call in vision.calls} == {"a ring"}
    vision.mode = "first"  # in love with a place: nothing changes
    biased = local(vision).result
    assert biased.images == [
        image.model_copy(update={"url": biased.images[i].url}) for i, image in enumerate(by_verdict.images)
    ]


def test_finals_with_one_leader_have_no_match(vision: Vision) -> None:
    result = local(vision, finals={"margin": 0.0}).result
    assert (result.finals, result.warnings, vision.calls) == (None, [], [])


def test_a_judge_that_is_away_leaves_the_verdicts_order(vision: Vision) -> None:
    vision.failures = 1000
    result = local(vision, attempts=2).result
    assert (result.status, result.complete, result.finals) == (JobStatus.SUCCEEDED, True, None)
    assert result.images[0].candidate == local(vision, finals=None).result.images[0].candidate
    (warning,) = result.warnings
    assert "answered 500" in warning
    assert warning.endswith("the ranks are those of the verdicts")


def test_ctrl_c_and_the_deadline_end_finals_that_hang(vision: Vision) -> None:
    vision.pause.clear()
    runs = (local(vision, deadline_seconds=seconds).result for seconds in DEADLINES)
    result = next(result for result in runs if len(result.candidates) == REQUEST["num_samples"])
    assert (result.status, result.stopped, result.finals, len(result.images)) == ("succeeded", "deadline", None, 2)
    assert "deadline passed before" in result.warnings[-1]
    before = signal.getsignal(signal.SIGINT)

    def interrupt() -> None:
        until(lambda: signal.getsignal(signal.SIGINT) is not before)
        time.sleep(0.5)  # by now it waits for the judge
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=interrupt).start()
    assert local(vision).result.status is JobStatus.CANCELED


def test_finals_without_a_judge_are_refused() -> None:
    engine = FakeEngine(slots=4)
    with pytest.raises(InvalidRequest, match="BESTOFN_PAIRWISE_JUDGE") as refused:
        local_spec(GenerateRequest.model_validate(REQUEST), engine, Settings())
    assert refused.value.field == "finals"


@asynccontextmanager
async def worker(settings: Settings, slots: int = 16) -> AsyncIterator[None]:
    """A worker in this process; its SIGTERM is the end of the block."""
    task = asyncio.create_task(Worker(settings, lambda: FakeEngine(slots=slots)).run())
    yield
    os.kill(os.getpid(), signal.SIGTERM)
    assert await task == 0


async def ended(queue: Queue, job: str) -> tuple[JobResult, list[bytes]]:
    async for _ in events_of(queue, job):
        pass
    record = await queue.record(job)
    shown = assemble(record.spec, record.status, record.outcomes, stopped=record.stopped, finals=record.finals)
    return shown, [await queue.image(job, image.candidate) for image in shown.images]


async def nothing_is_left(queue: Queue, result: JobResult) -> None:
    """No work, no entries, and images of the winners alone."""
    backlog = await queue.backlog()
    assert (backlog.jobs, backlog.candidates, backlog.tflops) == (0, 0, 0.0)
    for name in await queue.redis.keys(queue.keys("ready", "*", "*")):
        assert await queue.redis.xlen(name) == 0
    kept = {int(candidate) for candidate in await queue.redis.hkeys(queue.keys("winner_images", result.id))}
    assert kept == {image.candidate for image in result.images}


async def due(queue: Queue, job: str) -> None:
    while await queue.redis.hget(queue.keys("job", job), "finals") != b"due":
        await asyncio.sleep(0.01)


FIELDS = {"num_samples": 40, "top_k": 2, "finals": {"max_entrants": 4, "margin": 8.0}}


@pytest.mark.parametrize("fields", [{}, {"stop": {"confidence": 0.9999}, "heat_size": 16}, {"draft": {"keep": 0.5}}])
@pytest.mark.parametrize("tells", [True, False])
async def test_a_served_job_ends_as_a_local_one(
    settings: Settings, make_spec: Callable[..., JobSpec], vision: Vision, fields: dict[str, object], tells: bool
) -> None:
    vision.tells = tells
    settings = settings.model_copy(update={"pairwise_judge": vision.url})
    spec = make_spec(**FIELDS, num_inference_steps=5, **fields)
    shown: list[JobResult] = []
    here = await asyncio.to_thread(run_local, spec, FakeEngine(slots=16), shown.append, VisionJudge(vision.url))
    queue = await Queue.connect(settings)
    async with worker(settings):
        while not await queue.announced():
            await asyncio.sleep(0.01)
        assert [info.pairwise_judge for info in await queue.announced()] == ["looker"]
        await queue.submit(spec, cost=1.0)
        result, images = await ended(queue, spec.id)
        assert result.finals is not None
        assert result.model_copy(update={"usage": None}) == here.result.model_copy(update={"usage": None})
        assert images == list(here.images.values())
        states = [event.data async for event in events_of(queue, spec.id) if event.type == "finals"]
        assert states == [job.progress.finals.model_dump() for job in shown if job.progress and job.progress.finals]
        rounds = [[match.model_dump() for match in matches] for matches in result.finals.rounds]
        assert [state["rounds"] for state in states] == [rounds[:played] for played in range(len(rounds))]
        assert {match["winner"] for match in rounds[0]} < set(states[0]["entrants"])
        assert (await queue.record(spec.id)).progress.finals is None
        await nothing_is_left(queue, result)
    await queue.aclose()


def test_job_ends_with_any_part_of_its_finals_away_canceled_or_late(
    settings: Settings, make_spec: Callable[..., JobSpec], vision: Vision
) -> None:
    settings = settings.model_copy(update={"pairwise_judge": vision.url})

    async def run() -> None:
        queue = await Queue.connect(settings)
        async with worker(settings):
            while not await queue.announced():
                await asyncio.sleep(0.01)
            # Nobody is close: the job ends with its last heat.
            alone = make_spec(num_samples=9, finals={"margin": 0.0})
            await queue.submit(alone, cost=1.0)
            result, _ = await ended(queue, alone.id)
            assert (result.finals, result.warnings, vision.calls) == (None, [], [])
            await nothing_is_left(queue, result)

            vision.pause.clear()
            canceled, late = make_spec(**FIELDS), make_spec(**FIELDS, deadline_seconds=3600)
            for spec in (canceled, late):
                await queue.submit(spec, cost=1.0)
                await due(queue, spec.id)
            assert await queue.cancel(canceled.id) is JobStatus.CANCELED
            await queue.redis.zadd(queue.keys("deadlines"), {late.id: 0})
            result, images = await ended(queue, late.id)
            assert (result.status, result.stopped, result.complete, len(images)) == ("succeeded", "deadline", False, 2)
            assert "the deadline passed before" in result.warnings[-1]
            vision.pause.set()

            vision.failures = 10**6
            away = make_spec(**FIELDS)
            await queue.submit(away, cost=1.0)
            result, images = await ended(queue, away.id)
            assert (result.status, result.complete, len(images)) == ("succeeded", True, 2)
            assert result.warnings == [
                "the finals were not played: the pairwise judge looker could not be asked; "
                "the ranks are those of the verdicts"
            ]
            await nothing_is_left(queue, result)
        await queue.aclose()

    asyncio.run(run())


async def test_finals_of_a_canceled_job_end_with_their_round_without_a_message(
    settings: Settings, make_spec: Callable[..., JobSpec], vision: Vision
) -> None:
    queue = await Queue.connect(settings)
    async with worker(settings.model_copy(update={"pairwise_judge": vision.url})):
        while not await queue.announced():
            await asyncio.sleep(0.01)
        vision.pause.clear()
        spec = make_spec(**FIELDS)
        await queue.submit(spec, cost=1.0)
        while (meeting := (await queue.record(spec.id)).progress.finals) is None:
            await asyncio.sleep(0.01)
        assert len(meeting.entrants) == 4
        await queue.redis.client_kill_filter(_type="pubsub")  # so that the worker misses what is published now
        assert await queue.cancel(spec.id) is JobStatus.CANCELED
        vision.pause.set()
        while any([await queue.redis.xlen(name) for name in await queue.redis.keys(queue.keys("ready", "*", "*"))]):
            await asyncio.sleep(0.01)
        assert len(vision.calls) == 4  # two matches, in both orders; not the last one
    await queue.aclose()


async def test_finals_are_handed_on_like_any_heat(
    settings: Settings,
    make_spec: Callable[..., JobSpec],
    open_lane: Callable[..., Awaitable[QueueConsumer]],
    finish: Callable[[Heat], HeatOutcome],
) -> None:
    queue = await Queue.connect(settings)
    one, two = await open_lane(queue, "one", 16), await open_lane(queue, "two", 16)
    spec = make_spec(num_samples=64, heat_size=16, stop={"confidence": 0.9}, **{"finals": {"margin": 9.0}})
    await queue.submit(spec, cost=1.0)
    ahead: list[Claim] = []
    while (await queue.record(spec.id)).stopped is None:
        claims = await one.claim(2, 0)
        claims.sort(key=lambda claim: claim.heat.index)
        ahead += claims[1:]
        if not claims:
            claims, ahead = ahead[:1], ahead[1:]
        await one.complete(claims[0], finish(claims[0].heat))
    # Heats that ran ahead are not wanted any more, the finals are, by whoever comes first.
    assert (await queue.record(spec.id)).status is JobStatus.RUNNING
    assert not await one.report(spec.id, [HeatProgress(claim.heat.index, 0, 1, 1) for claim in ahead])
    for claim in ahead:
        assert not await one.complete(claim, finish(claim.heat))
    (claim,) = await two.claim(9, 0)
    assert claim.heat.is_finals
    await two.give_back(claim, "retried")
    (claim,) = await one.claim(9, 0)
    assert claim.deliveries == 2
    await asyncio.sleep(0.05)
    (taken,) = await two.reclaim(0.02)
    assert (taken.heat, taken.deliveries) == (claim.heat, 3)
    meet, all_images = await two.finals_entrants(spec)
    assert len(meet) > 1
    meeting = FinalsProgress(judge="m", rounds=[], entrants=meet)
    assert await two.publish_finals(taken, meeting)
    assert not await one.publish_finals(claim, meeting.model_copy(update={"judge": "of one who has lost them"}))
    known = (await queue.record(spec.id)).progress.finals
    assert known is not None
    assert known == meeting
    finals = played("m", decided(meet, {index: float(-place) for place, index in enumerate(reversed(meet))}))
    assert await two.complete_finals(taken, finals)
    assert not await one.complete_finals(claim, finals)
    assert not await two.publish_finals(taken, meeting)
    result, images = await ended(queue, spec.id)
    winner = result.images[0].candidate
    assert (winner, images) == (finals.rounds[-1][-1].winner, [all_images[winner]])
    assert await one.claim(9, 0) == []
    await nothing_is_left(queue, result)
    await queue.aclose()


async def test_a_worker_without_a_judge_leaves_finals_to_one_that_has_it_or_ends_them(
    settings: Settings, make_spec: Callable[..., JobSpec]
) -> None:
    settings = settings.model_copy(update={"lease_seconds": PATIENCE})  # neither takes over what the other claimed
    queue = await Queue.connect(settings)
    async with worker(settings):
        while not (workers := await queue.workers()):
            await asyncio.sleep(0.01)
        spec = make_spec(**FIELDS)
        await queue.submit(spec, cost=1.0)
        result, _ = await ended(queue, spec.id)
        assert "no worker has a pairwise judge any more" in result.warnings[0]

        other = QueueConsumer(
            queue, workers[0].model_copy(update={"worker": "two", "capacity": 1, "pairwise_judge": "m"})
        )
        await other.heartbeat((), PATIENCE)
        spec = make_spec(**FIELDS)
        await queue.submit(spec, cost=1.0)
        await due(queue, spec.id)
        async with asyncio.timeout(PATIENCE):
            while not (claims := await other.claim(1, 1.0)):
                pass
        (claim,) = claims
        assert (claim.heat.is_finals, claim.deliveries) == (True, 1)
        assert await other.complete_finals(claim, played("m", decided((await other.finals_entrants(spec))[0], {})))
        assert (await ended(queue, spec.id))[0].finals is not None
    await queue.aclose()


async def test_finals_that_cost_workers_their_lives_are_given_up_not_the_job(
    settings: Settings,
    make_spec: Callable[..., JobSpec],
    open_lane: Callable[..., Awaitable[QueueConsumer]],
    finish: Callable[[Heat], HeatOutcome],
    vision: Vision,
) -> None:
    queue = await Queue.connect(settings)
    lane = await open_lane(queue, "one", 16)
    spec = make_spec(**FIELDS)
    await queue.submit(spec, cost=1.0)
    while claims := await lane.claim(9, 0):
        for claim in claims:
            if not claim.heat.is_finals:
                await lane.complete(claim, finish(claim.heat))
            elif claim.deliveries > settings.max_deliveries:
                await lane.give_back(claim, "released")
                break
            else:
                await lane.give_back(claim, "retried")
        else:
            continue
        break
    async with worker(settings.model_copy(update={"pairwise_judge": vision.url})):
        result, images = await ended(queue, spec.id)
    assert (result.status, len(images), vision.calls) == ("succeeded", 2, [])
    assert "they were tried 3 times" in result.warnings[0]
    await queue.aclose()


@pytest.mark.parametrize("server_program", ["valkey"], indirect=True)
@pytest.mark.parametrize("broken", ["an image", "the judge's answer"])
async def test_finals_that_cannot_be_read_end_without_ending_the_worker(
    settings: Settings,
    make_spec: Callable[..., JobSpec],
    open_lane: Callable[..., Awaitable[QueueConsumer]],
    finish: Callable[[Heat], HeatOutcome],
    vision: Vision,
    broken: str,
) -> None:
    queue = await Queue.connect(settings)
    lane = await open_lane(queue, "one", 16)
    spec = make_spec(**FIELDS)
    await queue.submit(spec, cost=1.0)
    while (claims := await lane.claim(1, 0)) and not claims[0].heat.is_finals:
        await lane.complete(claims[0], finish(claims[0].heat))
    if broken == "an image":
        worst = (await lane.finals_entrants(spec))[0][-1]
        heat = int(await queue.redis.hget(queue.keys("winner_images", spec.id), str(worst)))
        await queue.redis.hset(queue.keys("images", spec.id, heat), str(worst), b"cut short")
    else:
        vision.encoding = "gzip"
    await lane.leave(claims)
    async with worker(settings.model_copy(update={"pairwise_judge": vision.url})):
        result, _ = await asyncio.wait_for(ended(queue, spec.id), PATIENCE)
        assert (result.status, result.finals) == ("succeeded", None)
        assert "the finals were not played" in result.warnings[0]
    await queue.aclose()


def test_the_api_says_what_finals_need(served: Any) -> None:
    refused = httpx.post(f"{served.url}/generate", json=REQUEST, timeout=PATIENCE)
    assert (refused.status_code, refused.json()["field"]) == (422, "finals")
    assert "BESTOFN_PAIRWISE_JUDGE" in refused.json()["detail"]
    for wrong in ({"max_entrants": 1}, {"max_entrants": 17}, {"margin": -1.0}, {"url": "http://elsewhere"}):
        refused = httpx.post(f"{served.url}/generate", json=REQUEST | {"finals": wrong}, timeout=PATIENCE)
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")


JOBS = st.fixed_dictionaries(
    {
        "top_k": st.integers(1, 3),
        "rule": st.sampled_from(["margin", "official"]),
        "draft": st.sampled_from([None, {"num_inference_steps": 1, "keep": 0.25}]),
        "stop": st.none() | st.builds(Stop, min_samples=st.integers(1, 20), patience=st.integers(1, 80)),
        "finals": st.builds(Finals, max_entrants=st.integers(2, 5), margin=st.sampled_from([0.0, 1.5, 20.0])),
    }
)


@given(N=st.integers(1, 100), job=JOBS, workers=st.integers(1, 3), seed=st.integers(0, 2**32))
@bounds(max_examples=25, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
def test_finals_end_the_same_in_any_order_of_workers(
    settings: Settings,
    make_spec: Callable[..., JobSpec],
    open_lane: Callable[..., Awaitable[QueueConsumer]],
    N: int,
    job: dict[str, object],
    workers: int,
    seed: int,
) -> None:
    chance = random.Random(seed)
    verdicts = drawn(N, chance)
    quality = dict(enumerate(chance.sample(range(N), N)))
    spec = make_spec(num_samples=N, heat_size=16, **job)
    spec = spec.model_copy(update={"top_k": min(spec.top_k, spec.schedule.num_promoted)})

    def finals_of(meet: list[int]) -> FinalsOutcome:
        return played("m", decided(meet, {index: float(rank) for index, rank in quality.items()}))

    outcomes = [outcome_of(heat, verdicts) for heat in spec.heats()]
    prefix = fold(spec, Prefix(), {outcome.heat: outcome.candidates for outcome in outcomes})
    meet = [candidate.index for candidate in entrants(spec, prefix.leaders)]
    expected = assemble(
        spec,
        JobStatus.SUCCEEDED,
        outcomes[: prefix.heats],
        stopped=prefix.stopped,
        finals=finals_of(meet) if meet else None,
    )

    async def run() -> None:
        queue = await Queue.connect(settings.model_copy(update={"namespace": f"test-finals-{uuid.uuid4().hex[:8]}"}))
        lanes = [await open_lane(queue, f"worker {i}", 16) for i in range(workers)]
        await queue.submit(spec, cost=10.0)
        held: list[tuple[QueueConsumer, Claim]] = []
        while (await queue.record(spec.id)).status is not JobStatus.SUCCEEDED or held:
            lane = chance.choice(lanes)
            held += [(lane, claim) for claim in await lane.claim(2, 0)]
            if held and (len(held) > 5 or chance.random() < 0.4):
                place, claim = held.pop(chance.randrange(len(held)))
                if chance.random() < 0.2:
                    await place.give_back(claim, "released")
                elif claim.heat.is_finals:
                    await place.complete_finals(claim, finals_of((await place.finals_entrants(spec))[0]))
                else:
                    await place.complete(claim, outcome_of(claim.heat, verdicts))
        result, images = await ended(queue, spec.id)
        assert result == expected
        assert images == [b"image %d" % image.candidate for image in result.images]
        for lane in lanes:
            assert await lane.claim(9, 0) == []
        await nothing_is_left(queue, result)
        await queue.aclose()

    asyncio.run(run())
