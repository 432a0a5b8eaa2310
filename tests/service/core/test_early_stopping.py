"""Jobs that may stop end as with one worker that draws heat after heat, whatever the order of the workers."""

import asyncio
import json
import random
import uuid
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as bounds
from hypothesis import strategies as st

from bestofn.judge.calibration import Calibration
from bestofn.judge.verdict import Verdict
from bestofn.service.api.event_translation import EventTranslator
from bestofn.service.api.queue_metrics import EndedJobs
from bestofn.service.core.errors import ImageNotFound, Overloaded
from bestofn.service.core.jobs import Candidate, Draft, Heat, HeatOutcome, JobSpec, JobStatus, Stop, Usage
from bestofn.service.core.results import assemble, leaders, promoted
from bestofn.service.core.schemas import GenerateRequest, JobResult
from bestofn.service.core.settings import Settings
from bestofn.service.engine.fake import FakeEngine
from bestofn.service.queue.claims import Claim, HeatProgress, Judgement
from bestofn.service.queue.codec import Event, pack_candidate
from bestofn.service.queue.consumer import QueueConsumer
from bestofn.service.queue.job_queue import Queue
from bestofn.service.worker.local import local_spec, run_local
from tests.waiting import events_of

MakeSpec = Callable[..., JobSpec]
OpenLane = Callable[..., Awaitable[QueueConsumer]]

JOBS = st.fixed_dictionaries(
    {
        "top_k": st.integers(1, 3),
        "rule": st.sampled_from(["margin", "official"]),
        "draft": st.sampled_from([None, None, {"num_inference_steps": 1, "keep": 0.25}]),
        "stop": st.builds(
            Stop,
            confidence=st.sampled_from([0.6, 0.97, 0.97, 0.97]),
            min_samples=st.integers(1, 20),
            patience=st.one_of(st.integers(1, 300), st.just(4096)),
        ),
        "calibration": st.sampled_from([None, Calibration(2.0, 0.5)]),
    }
)


def outcome_of(heat: Heat, verdicts: list[Verdict]) -> HeatOutcome:
    """What an engine makes of a heat whose images have these verdicts, and whose drafts get them too."""
    spec = heat.job
    full = set(heat.candidates)
    if spec.draft is not None:
        full = set(promoted(spec, {index: verdicts[index] for index in heat.candidates}))
    candidates = tuple(
        Candidate(i, spec.seed + i, verdicts[i], None if spec.draft is None else verdicts[i], i in full)
        for i in heat.candidates
    )
    images = {index: b"image %d" % index for index in leaders(spec, candidates)}
    return HeatOutcome(heat.index, candidates, images, Usage(heat.count, heat.steps, heat.count, 0.5))


def one_by_one(spec: JobSpec, verdicts: list[Verdict]) -> JobResult:
    """The definition: after each heat in turn, is it enough? It uses none of the code under test."""
    assert spec.stop is not None
    outcomes: list[HeatOutcome] = []
    stopped = None
    for heat in spec.heats():
        outcomes.append(outcome_of(heat, verdicts))
        judged = [candidate for outcome in outcomes for candidate in outcome.candidates]
        best = [next(c for c in judged if c.index == index) for index in leaders(spec, judged)]
        if len(best) == spec.top_k:
            verdict, p = best[0].verdict, 0.0
            if verdict.answer != "other" and not verdict.broken:
                odds = verdict.margin if spec.calibration is None else verdict.margin / 2.0 + 0.5
                p = Verdict("yes", odds, 0.0).p_yes
            if len(judged) >= spec.stop.min_samples and p >= spec.stop.confidence:
                stopped = "confident"
            elif len(judged) >= spec.stop.patience and (verdict.answer != "yes" or verdict.broken):
                stopped = "patience"
        if stopped:
            break
    return assemble(spec, JobStatus.SUCCEEDED, outcomes, stopped=stopped)


def drawn(N: int, chance: random.Random) -> list[Verdict]:
    """Mostly no; so few sure ones that jobs end anywhere, and now and then an answer that is none."""
    best = chance.choice([-0.5, 1.0])

    def verdict() -> Verdict:
        margin = chance.choice([-6.0, -3.0, -1.0, -1.0, 0.0, best])
        match chance.random():
            case x if x < 0.01:
                return Verdict("yes", 5.0, 0.0)
            case x if x < 0.02:
                return Verdict("other", 6.0, 0.0)
            case x if x < 0.03:
                return Verdict("yes", float("nan"), 0.0)
        return Verdict("yes" if margin > 0 else "no", margin, 0.0)

    return [verdict() for _ in range(N)]


async def answer(queue: Queue, job: str) -> tuple[JobResult, list[bytes]]:
    record = await queue.record(job)
    result = assemble(record.spec, record.status, record.outcomes, stopped=record.stopped)
    return result, [await queue.image(job, image.candidate) for image in result.images]


async def nothing_is_left(queue: Queue, spec: JobSpec, result: JobResult) -> None:
    """No work of anybody, no entries, no turns, and images of the winners alone."""
    held = await queue.redis.hgetall(queue.keys("backlog")) | await queue.redis.hgetall(queue.keys("callers"))
    assert set(held.values()) <= {b"0"}, held
    for name in await queue.redis.keys(queue.keys("ready", "*", "*")):
        assert await queue.redis.xlen(name) == 0
    for turns in (queue.keys("ring", "*", "*"), queue.keys("jobs", "*", "*", "*"), queue.keys("clock", "*", "*")):
        assert await queue.redis.keys(turns) == []
    images = {
        int(candidate)
        for name in await queue.redis.keys(queue.keys("images", spec.id, "*"))
        for candidate in await queue.redis.hkeys(name)
    }
    assert images == {image.candidate for image in result.images}
    assert await queue.redis.keys(queue.keys("staged", spec.id, "*", "*")) == []


@given(
    N=st.one_of(st.integers(1, 30), st.integers(100, 300), st.integers(100, 300)),
    job=JOBS,
    workers=st.integers(1, 4),
    seed=st.integers(0, 2**32),
)
@bounds(max_examples=30, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
def test_early_stop_ends_the_same_in_any_order_of_workers(
    settings: Settings,
    make_spec: MakeSpec,
    open_lane: OpenLane,
    N: int,
    job: dict[str, object],
    workers: int,
    seed: int,
) -> None:
    chance = random.Random(seed)
    verdicts = drawn(N, chance)
    spec = make_spec(num_samples=N, heat_size=16, **job)
    spec = spec.model_copy(update={"top_k": min(spec.top_k, spec.schedule.num_promoted)})
    expected = one_by_one(spec, verdicts)

    async def run() -> None:
        own = settings.model_copy(update={"namespace": f"test-stop-{uuid.uuid4().hex[:8]}"})
        queue = await Queue.connect(own)
        lanes = [await open_lane(queue, f"worker {i}", 16) for i in range(workers)]
        await queue.submit(spec, cost=10.0, caller="one")
        held: list[tuple[QueueConsumer, Claim]] = []
        for _ in range(1000):
            lane = chance.choice(lanes)
            held += [(lane, claim) for claim in await lane.claim(2, 0)]
            prefix = spec.schedule.first(int(await queue.redis.hget(queue.keys("job", spec.id), "decided")))
            ahead = spec.schedule.first(int(await queue.redis.hget(queue.keys("job", spec.id), "next"))) - prefix
            assert ahead <= max(4, prefix) or (spec.draft is not None and ahead <= max(16, prefix))
            if held and (len(held) > 7 or chance.random() < 0.3):
                place, claim = held.pop(max(chance.choices(range(len(held)), k=2)))  # more often the later ones
                if chance.random() < 0.2:
                    await place.give_back(claim, "released")
                else:
                    await place.complete(claim, outcome_of(claim.heat, verdicts))
            if not held and (await queue.record(spec.id)).status is JobStatus.SUCCEEDED:
                break
        result, images = await answer(queue, spec.id)
        assert result == expected
        assert images == [b"image %d" % image.candidate for image in result.images]
        assert len(images) == spec.top_k
        assert int(await queue.redis.hget(queue.keys("job", spec.id), "judged")) == len(result.candidates)
        for lane in lanes:
            assert await lane.claim(9, 0) == []
        await nothing_is_left(queue, spec, result)
        await queue.aclose()

    asyncio.run(run())


async def test_the_scripts_cut_jobs_as_python_does(
    settings: Settings, make_spec: MakeSpec, open_lane: OpenLane
) -> None:
    queue = await Queue.connect(settings)
    lane = await open_lane(queue, capacity=10_000)
    for num_samples in (1, 3, 4, 5, 8, 11, 16, 17, 32, 33, 100, 527):
        for heat_size in {min(num_samples, 16), 3}:
            # At full confidence it ends with the last heat.
            stop = {"confidence": 1 - 1e-12, "patience": 4096}
            for fields in ({"stop": stop}, {"stop": stop, "draft": {"keep": 0.5}}, {}):
                spec = make_spec(num_samples=num_samples, heat_size=heat_size, num_inference_steps=9, **fields)
                await queue.submit(spec, cost=1)
                cut: list[Heat] = []
                while claims := await lane.claim(300, 0):
                    for claim in claims:
                        assert claim.heat.count == claim.entry.count
                        cut.append(claim.heat)
                        await lane.complete(claim, outcome_of(claim.heat, [Verdict("no", 0.0, 1.0)] * num_samples))
                assert cut == list(spec.heats())
                assert [i for heat in cut for i in heat.candidates] == list(range(num_samples))
    first = make_spec(num_samples=70, heat_size=16, stop=stop)
    assert [heat.count for heat in first.heats()] == [4, 4, 8, 16, 16, 16, 6]
    drafted = make_spec(num_samples=70, heat_size=16, stop=stop, draft=Draft(num_inference_steps=1))
    assert [heat.count for heat in drafted.heats()] == [8, 8, 16, 16, 16, 6]
    await queue.aclose()


@pytest.mark.parametrize(
    ("dead", "margin", "end"),
    [(5, 9.0, JobStatus.SUCCEEDED), (5, 0.5, JobStatus.FAILED), (4, 9.0, JobStatus.FAILED)],
    ids=["beyond the end", "before it", "the next"],
)
async def test_a_heat_that_cannot_be_done_counts_only_if_the_job_comes_to_it(
    settings: Settings, make_spec: MakeSpec, open_lane: OpenLane, dead: int, margin: float, end: JobStatus
) -> None:
    queue = await Queue.connect(settings)
    lane = await open_lane(queue, capacity=64)
    verdicts = [Verdict("no", 0.0, 1.0)] * 32 + [Verdict("yes", margin, 0.0)] * 68
    spec = make_spec(num_samples=100, heat_size=16, stop={"confidence": 0.9})
    await queue.submit(spec, cost=1)
    for _ in range(4):
        [claim] = await lane.claim(9, 0)
        await lane.complete(claim, outcome_of(claim.heat, verdicts))
    claims = {claim.heat.index: claim for claim in await lane.claim(9, 0)}
    assert set(claims) == {4, 5}
    await lane.give_back(claims.pop(dead), "dead_lettered", "it would not")
    for claim in claims.values():
        assert (await queue.record(spec.id)).status is (JobStatus.RUNNING if dead == 5 else JobStatus.FAILED)
        await lane.complete(claim, outcome_of(claim.heat, verdicts))
    record = await queue.record(spec.id)
    assert (record.status, record.error) == (end, "it would not" if end is JobStatus.FAILED else None)
    assert await lane.claim(9, 0) == []
    await nothing_is_left(queue, spec, assemble(spec, record.status, record.outcomes))
    await queue.aclose()


async def test_the_second_completion_of_a_job_that_never_stopped_is_late(
    settings: Settings, make_spec: MakeSpec, open_lane: OpenLane
) -> None:
    queue = await Queue.connect(settings)
    one, two = await open_lane(queue), await open_lane(queue, "two")
    spec = make_spec(num_samples=4, stop={"confidence": 0.9})
    await queue.submit(spec, cost=1)
    [slow] = await one.claim(1, 0)
    [quick] = await two.reclaim(0)
    outcome = outcome_of(slow.heat, [Verdict("no", 0.0, 1.0)] * 4)
    assert await two.complete(quick, outcome)
    assert not await one.complete(slow, outcome)
    await queue.aclose()


async def test_early_stop_drops_and_counts_heats_that_ran_ahead(
    settings: Settings, make_spec: MakeSpec, open_lane: OpenLane
) -> None:
    queue = await Queue.connect(settings)
    lane = await open_lane(queue, capacity=64)
    verdicts = [Verdict("no", 0.0, 1.0)] * 40 + [Verdict("yes", 9.0, 0.0)] * 60
    spec = make_spec(num_samples=100, heat_size=16, stop={}, thumbnails=True)
    await queue.submit(spec, cost=1)
    for _ in range(4):
        [claim] = await lane.claim(9, 0)
        await lane.complete(claim, outcome_of(claim.heat, verdicts))
    four, five = sorted(await lane.claim(9, 0), key=lambda claim: claim.heat.index)
    for claim, steps in ((four, 32), (five, 10)):
        judged = [Judgement(c, b"small") for c in outcome_of(claim.heat, verdicts).candidates[-2:]]
        await lane.report(spec.id, [HeatProgress(claim.heat.index, 2, steps, 2 * steps)], judged)
    await lane.complete(four, outcome_of(four.heat, verdicts))
    await lane.complete(five, outcome_of(five.heat, verdicts))  # too late
    record = await queue.record(spec.id)
    assert (record.stopped, record.discarded_forwards, record.progress.judged) == ("confident", 20, 48)
    assert await queue.thumbnail(spec.id, 47) == b"small"
    with pytest.raises(ImageNotFound):
        await queue.thumbnail(spec.id, 63)
    assert (await queue.backlog()).image_bytes == len(await queue.image(spec.id, 40)) + 2 * len(b"small")
    events = [event async for event in events_of(queue, spec.id)]
    assert [event.data["decided"] for event in events if event.type == "heat"] == [1, 2, 3, 4, 5]
    matches = [
        told.data
        for translator in [EventTranslator(spec)]
        for index in range(64)  # heat 5 has been judged too, when heat 4 ends the job
        for told in [
            *translator.translate(
                Event(
                    f"{index}-0",
                    "candidate",
                    json.loads(pack_candidate(Candidate(index, 7 + index, verdicts[index]))),
                )
            ),
            *(translator.translate(Event(f"{index}-1", "heat", {"decided": 5})) if index == 63 else ()),
        ]
        if told.type == "match"
    ]
    bracket = (await answer(queue, spec.id))[0].bracket
    for match in matches:
        shown = bracket[match["round"]][match["place"]]
        assert (shown.a, shown.b, shown.winner) == (match["a"], match["b"], match["winner"])
    assert len(matches) == 46  # of 48 candidates; the rest waits for the bracket's end
    await queue.aclose()


async def test_until_its_end_a_job_counts_with_the_most_that_it_may_take_and_the_end_is_counted_by_its_reason(
    settings: Settings, make_spec: MakeSpec, open_lane: OpenLane
) -> None:
    queue = await Queue.connect(settings.model_copy(update={"max_queued_candidates_per_key": 100}))
    lane = await open_lane(queue, capacity=64)
    ended = EndedJobs()
    await ended.read(queue)
    no, yes = [Verdict("no", 0.0, 1.0)] * 100, [Verdict("yes", 9.0, 0.0)] * 100
    for stop, verdicts, left in (({}, yes, 96), ({"patience": 8}, no, 92), (None, no, 0), ({}, [], 100)):
        spec = make_spec(num_samples=100, heat_size=16, stop=stop, deadline_seconds=3600)
        await queue.submit(spec, cost=50, caller="one")  # the whole share: the job before it has left nothing
        waits = 100
        while verdicts and waits > left:
            assert (await queue.backlog()).candidates == waits
            with pytest.raises(Overloaded, match=f"{waits} candidates of this key wait"):
                await queue.submit(make_spec(num_samples=101 - waits), cost=1, caller="one")
            [claim, *ahead] = sorted(await lane.claim(9, 0), key=lambda claim: claim.heat.index)
            await lane.complete(claim, outcome_of(claim.heat, verdicts))
            for other in ahead:
                await lane.give_back(other, "released")
            waits -= claim.heat.count
        if not verdicts:
            await queue.redis.zadd(queue.keys("deadlines"), {spec.id: 0})
            await queue.scripts("expire")
        held = await queue.redis.hgetall(queue.keys("backlog")) | await queue.redis.hgetall(queue.keys("callers"))
        assert set(held.values()) == {b"0"}
    await ended.read(queue)
    counted = {"confident": 1, "patience": 1, "none": 1, "deadline": 1}
    name = "bestofn_jobs_stopped_total"
    assert {reason: ended.registry.get_sample_value(name, {"reason": reason}) for reason in counted} == counted
    await queue.aclose()


async def test_a_deadline_takes_the_best_of_all_that_was_judged(
    settings: Settings, make_spec: MakeSpec, open_lane: OpenLane
) -> None:
    queue = await Queue.connect(settings)
    lane = await open_lane(queue, capacity=64)
    verdicts = [Verdict("no", 0.0, 1.0)] * 40 + [Verdict("yes", 0.5, 0.0)] * 60
    spec = make_spec(num_samples=100, heat_size=16, top_k=2, stop={"confidence": 0.9}, deadline_seconds=3600)
    await queue.submit(spec, cost=1)
    for _ in range(4):
        for claim in await lane.claim(9, 0):
            await lane.complete(claim, outcome_of(claim.heat, verdicts))
    three, four = sorted(await lane.claim(9, 0), key=lambda claim: claim.heat.index)
    await lane.complete(four, outcome_of(four.heat, verdicts))  # beyond the prefix
    await queue.redis.zadd(queue.keys("deadlines"), {spec.id: 0})
    await queue.scripts("expire")
    await lane.complete(three, outcome_of(three.heat, verdicts))
    result, images = await answer(queue, spec.id)
    assert (result.stopped, result.complete, len(result.candidates)) == ("deadline", False, 48)
    assert [image.candidate for image in result.images] == [48, 49]
    assert len(images) == 2
    assert (await queue.backlog()).candidates == 0
    await queue.aclose()


@pytest.mark.parametrize("fields", [{}, {"draft": {"num_inference_steps": 1, "keep": 0.25}, "top_k": 3}])
@pytest.mark.parametrize("seed", [1, 2, 5])
def test_local_runs_end_as_the_definition_says(fields: dict[str, object], seed: int) -> None:
    request = {"prompt": "a ring", "num_samples": 60, "seed": seed, "stop": {"confidence": 0.999, "patience": 40}}
    engine = FakeEngine(slots=16)
    spec = local_spec(GenerateRequest.model_validate(request | fields), engine, Settings())
    run = run_local(spec, engine)
    outcomes = []
    for heat in spec.heats():  # as an engine without a rule would draw them
        engine.admit(heat)
        while engine.busy:
            outcomes += [event.outcome for event in engine.tick() if hasattr(event, "outcome")]
    stop = len(run.result.candidates)
    assert run.result.calibrated is False
    assert "not calibrated" in run.result.warnings[0]
    assert run.result == assemble(
        spec,
        JobStatus.SUCCEEDED,
        [outcome for outcome in outcomes if spec.schedule.first(outcome.heat) < stop],
        stopped=run.result.stopped,
    )
    assert list(run.images) == [image.candidate for image in run.result.images]
    assert stop in {spec.schedule.first(heat) for heat in range(1, spec.schedule.num_heats + 1)}
    assert (run.result.stopped == "confident") == ((run.result.confidence or 0) >= 0.999)
