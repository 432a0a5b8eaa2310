"""The queue's contract, over Redis and the embedded Valkey: what every submit, claim, completion and end must keep."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from bestofn.service.core.errors import (
    IdempotencyMismatch,
    ImageNotFound,
    InvalidRequest,
    JobGone,
    JobNotFound,
    Overloaded,
    SetupError,
    Unavailable,
)
from bestofn.service.core.jobs import Draft, Heat, HeatOutcome, JobSpec, JobStatus
from bestofn.service.core.results import leaders
from bestofn.service.core.scheduling import Backlog
from bestofn.service.core.settings import Settings
from bestofn.service.queue.claims import Claim, HeatProgress, Judgement
from bestofn.service.queue.codec import pack_heat, unpack_heat
from bestofn.service.queue.connection import check_server
from bestofn.service.queue.consumer import QueueConsumer
from bestofn.service.queue.job_queue import Queue
from bestofn.service.queue.keys import GROUP, Keys
from tests.service.queue.opening import opened
from tests.waiting import events_of

MakeSpec = Callable[..., JobSpec]
Finish = Callable[[Heat], HeatOutcome]
OpenLane = Callable[..., Awaitable[QueueConsumer]]


async def drain(lane: QueueConsumer, finish: Finish) -> list[Claim]:
    """Claims and completes all there is."""
    done = []
    while claims := await lane.claim(1, 0):
        for claim in claims:
            await lane.complete(claim, finish(claim.heat))
            done.append(claim)
    return done


async def types(queue: Queue, job: str, after: str = "0") -> list[str]:
    return [event.type async for event in events_of(queue, job, after)]


async def test_a_job_runs_to_its_end(
    settings: Settings, make_spec: MakeSpec, finish: Finish, open_lane: OpenLane
) -> None:
    async with opened(settings) as queue:
        lane = await open_lane(queue)
        spec = make_spec(num_samples=10, top_k=3, seed=2**63 - 10)
        assert await queue.submit(spec, cost=1.5) == (spec.id, True)
        assert await queue.spec(spec.id) == spec
        before = await queue.record(spec.id)
        assert (before.status, before.progress.position) == (JobStatus.QUEUED, 1)
        assert not await queue.redis.hexists(queue.keys("job", spec.id), "started")
        feared = 3 * (int(32 * 32 * 3.1) + 2048 + 16 * len(spec.prompt))  # images with their stories
        assert await queue.backlog() == Backlog(1, 10, 1.5, feared)

        claims = await drain(lane, finish)
        assert [(claim.heat.index, claim.heat.count, claim.deliveries) for claim in claims] == [
            (0, 4, 1),
            (1, 4, 1),
            (2, 2, 1),
        ]
        record = await queue.record(spec.id)
        assert record.status is JobStatus.SUCCEEDED
        assert record.progress.judged == 10
        times = await queue.redis.hmget(queue.keys("job", spec.id), ["created", "started", "ended"])
        assert sorted(times, key=int) == times
        candidates = [candidate for outcome in record.outcomes for candidate in outcome.candidates]
        assert [candidate.seed for candidate in candidates] == list(range(2**63 - 10, 2**63))
        expected = {index: image for heat in spec.heats() for index, image in finish(heat).images.items()}
        for index in leaders(spec, candidates):
            assert await queue.image(spec.id, index) == expected[index]
        losers = set(range(10)) - set(leaders(spec, candidates))
        for index in losers:
            with pytest.raises(ImageNotFound):
                await queue.image(spec.id, index)
        assert await types(queue, spec.id) == ["queued", "started", "heat", "heat", "progress", "heat", "result"]
        sizes = [len(await queue.image(spec.id, index)) for index in leaders(spec, candidates)]
        assert await queue.backlog() == Backlog(0, 0, 0.0, sum(sizes))


async def test_no_pair_no_job(settings: Settings, make_spec: MakeSpec, open_lane: OpenLane) -> None:
    async with opened(settings) as queue:
        with pytest.raises(Unavailable, match="no worker has ever announced"):
            await queue.submit(make_spec(), cost=1)
        lane = await open_lane(queue)
        assert [info.worker for info in await queue.workers()] == ["one"]
        await lane.leave(())
        assert await queue.workers() == []
        assert [info.worker for info in await queue.announced()] == ["one"]
        await queue.submit(make_spec(), cost=1)  # waits for the next worker
        assert await lane.claim(4, 0) == []
        assert len(await (await open_lane(queue, "two")).claim(4, 0)) == 1


async def test_the_first_completion_wins_and_a_lost_lease_stays_lost(
    settings: Settings, make_spec: MakeSpec, finish: Finish, open_lane: OpenLane
) -> None:
    async with opened(settings) as queue:
        one, two = await open_lane(queue), await open_lane(queue, "two")
        spec = make_spec(num_samples=4)
        await queue.submit(spec, cost=1)
        [late] = await one.claim(1, 0)
        assert await two.reclaim(3600.0) == []
        ready = queue.keys("ready", one.pair, spec.priority)
        await asyncio.sleep(0.2)
        begun = time.monotonic()
        assert await one.heartbeat([late], 3600.0) == set()
        [row] = await queue.redis.xpending_range(ready, GROUP, "-", "+", 1)
        unrenewed = row["time_since_delivered"] / 1000
        assert unrenewed < time.monotonic() - begun + 0.1  # the beat renewed the lease
        await asyncio.sleep(0.1)
        [again] = await two.reclaim(0.05)
        assert again.deliveries == 2  # the beat was no delivery
        assert await one.heartbeat([late], 3600.0) == {late.entry.id}
        await one.give_back(late, "retried", "a loser's word")  # not its own any more: nothing happens
        assert await two.heartbeat([again], 3600.0) == set()

        assert await one.complete(late, finish(late.heat))
        assert not await two.complete(again, finish(again.heat))
        assert (await queue.record(spec.id)).progress.judged == 4
        assert (await types(queue, spec.id)).count("heat") == 1


async def test_leaders_images_are_stored_in_any_order_of_completion(
    settings: Settings, make_spec: MakeSpec, finish: Finish, open_lane: OpenLane
) -> None:
    async with opened(settings) as queue:
        lanes = [await open_lane(queue, name, 16) for name in ("one", "two")]
        spec = make_spec(num_samples=24, heat_size=3, top_k=4)
        await queue.submit(spec, cost=1)
        claims = [(lane, claim) for _ in range(4) for lane in lanes for claim in await lane.claim(1, 0)]
        assert len(claims) == 8
        await asyncio.gather(*(lane.complete(claim, finish(claim.heat)) for lane, claim in reversed(claims)))
        record = await queue.record(spec.id)
        best = leaders(spec, [c for outcome in record.outcomes for c in outcome.candidates])
        for index in range(24):
            if index in best:
                assert await queue.image(spec.id, index)
            else:
                with pytest.raises(ImageNotFound):
                    await queue.image(spec.id, index)
        keys = await queue.redis.keys(queue.keys("staged", spec.id, "*", "*"))
        assert keys == []


async def test_images_of_a_completion_that_broke_off_go_with_their_job(
    settings: Settings, make_spec: MakeSpec, finish: Finish, open_lane: OpenLane
) -> None:
    async with opened(settings) as queue:
        lane = await open_lane(queue)
        spec = make_spec(num_samples=8)
        await queue.submit(spec, cost=1)
        claims = [claim for _ in range(2) for claim in await lane.claim(1, 0)]
        outcomes = [finish(claim.heat) for claim in claims]
        [best] = leaders(spec, [candidate for outcome in outcomes for candidate in outcome.candidates])
        loser, winner = sorted(range(2), key=lambda heat: best in claims[heat].heat.candidates)
        staged = queue.keys("staged", spec.id, loser, lane.worker)
        await queue.redis.hset(staged, mapping={str(i): image for i, image in outcomes[loser].images.items()})
        for heat in (winner, loser):
            await lane.complete(claims[heat], outcomes[heat])
        assert await queue.image(spec.id, best) == outcomes[winner].images[best]
        kept = await queue.redis.keys(f"{settings.namespace}:job:*")
        assert all([0 < await queue.redis.pttl(key) <= 3_600_000 for key in kept])


async def test_thumbnails_are_stored_before_their_heat_ends_and_count_as_bytes(
    settings: Settings, make_spec: MakeSpec, finish: Finish, open_lane: OpenLane
) -> None:
    async with opened(settings) as queue:
        lane = await open_lane(queue)
        spec = make_spec(num_samples=4, thumbnails=True)
        await queue.submit(spec, cost=1)
        assert (await queue.backlog()).image_bytes > 4 * 8192
        [claim] = await lane.claim(1, 0)
        outcome = finish(claim.heat)
        for repeated in (b"first", b"conflict"):  # a heat that starts anew tells its candidates again
            judged = [Judgement(candidate, repeated) for candidate in outcome.candidates[:2]]
            assert await lane.report(spec.id, [HeatProgress(0, 2, 4, 8)], judged)
        assert await queue.thumbnail(spec.id, 1) == b"first"
        with pytest.raises(ImageNotFound):
            await queue.thumbnail(spec.id, 2)
        with pytest.raises(JobNotFound):
            await queue.thumbnail("abc", 1)
        assert (await queue.record(spec.id)).progress.transformer_forwards == 8
        await lane.complete(claim, outcome)
        assert (await queue.record(spec.id)).progress.transformer_forwards == 16
        [winner] = leaders(spec, outcome.candidates)
        assert (await queue.backlog()).image_bytes == len(await queue.image(spec.id, winner)) + 2 * len(b"first")


async def test_a_waiting_job_knows_its_place_and_about_how_long(
    settings: Settings, make_spec: MakeSpec, open_lane: OpenLane
) -> None:
    async with opened(settings) as queue:
        lane = await open_lane(queue)  # of 4 candidates, and one heat more is dealt
        first, second, third = (make_spec(num_samples=num) for num in (16, 16, 4))
        for spec in (first, second, third):
            await queue.submit(spec, cost=spec.num_samples)  # 1 TFLOP a candidate
        waits = [await queue.position(spec) for spec in (second, third)]
        assert [(wait.position, wait.estimated_wait_seconds) for wait in waits] == [(2, None), (3, None)]
        await lane.heartbeat((), 3600.0, tflops_per_second=2.0)
        assert (await queue.position(second)).estimated_wait_seconds == (4 + 4) / 2
        assert (await queue.position(third)).estimated_wait_seconds == (4 + 2 * 4) / 2
        [claim] = await lane.claim(1, 0)
        assert (await queue.record(claim.entry.job)).progress.estimated_wait_seconds is None


async def test_cancel_drops_what_waits_and_no_other_job(
    settings: Settings, make_spec: MakeSpec, finish: Finish, open_lane: OpenLane
) -> None:
    async with opened(settings) as queue:
        lane = await open_lane(queue, capacity=8)
        gone, stays = make_spec(num_samples=40, top_k=4), make_spec(num_samples=8)
        await queue.submit(gone, cost=1)
        [held] = await lane.claim(1, 0)
        await lane.complete(held, finish(held.heat))
        [held] = await lane.claim(1, 0)
        await queue.submit(stays, cost=1)
        assert await queue.cancel(gone.id) is JobStatus.CANCELED
        assert await queue.cancel(gone.id) is JobStatus.CANCELED
        assert not await lane.report(gone.id, [HeatProgress(1, 1, 2, 4)])
        assert not await lane.complete(held, finish(held.heat))
        assert {claim.entry.job for claim in await drain(lane, finish)} == {stays.id}
        assert (await queue.record(stays.id)).status is JobStatus.SUCCEEDED
        assert await queue.cancel(stays.id) is JobStatus.SUCCEEDED
        assert (await types(queue, gone.id))[-1] == "canceled"
        backlog = await queue.backlog()
        assert (backlog.jobs, backlog.candidates, backlog.tflops) == (0, 0, 0.0)
        assert await queue.redis.keys(queue.keys("images", gone.id, "*")) == []
        with pytest.raises(JobNotFound):
            await queue.cancel("nothing")


async def test_ring_drops_ended_jobs_without_a_dispatch(
    settings: Settings, make_spec: MakeSpec, open_lane: OpenLane
) -> None:
    async with opened(settings) as queue:
        lane = await open_lane(queue)
        await lane.heartbeat((), 0.0)  # it leaves, and no worker is left
        canceled, late, stays = make_spec(), make_spec(deadline_seconds=0.001), make_spec()
        for spec in (canceled, late, stays):
            await queue.submit(spec, cost=1)
        await queue.cancel(canceled.id)
        await asyncio.sleep(0.01)
        await queue.expire_jobs()
        assert (await types(queue, late.id))[-1] == "failed"
        jobs = await queue.redis.lrange(queue.keys("jobs", lane.pair, stays.priority, ""), 0, -1)
        assert jobs == [stays.id.encode()]
        assert (await queue.position(stays)).position == 1


async def test_one_idempotency_key_makes_one_job(settings: Settings, make_spec: MakeSpec, open_lane: OpenLane) -> None:
    async with opened(settings) as queue:
        await open_lane(queue)
        calls = [queue.submit(make_spec(), idempotency_key="k", fingerprint="f", cost=1) for _ in range(50)]
        replies = await asyncio.gather(*calls)
        assert len({job for job, _ in replies}) == 1
        assert sum(created for _, created in replies) == 1
        with pytest.raises(IdempotencyMismatch, match="use a new key"):
            await queue.submit(make_spec(), idempotency_key="k", fingerprint="g", cost=1)
        assert (await queue.backlog()).jobs == 1
        spec = make_spec()
        for _ in range(2):  # as if the reply to the first try had been lost
            assert await queue.submit(spec, idempotency_key="l", fingerprint="f", cost=1) == (spec.id, True)
        assert (await queue.backlog()).jobs == 2


async def test_admission_counts_candidates_and_bytes(
    settings: Settings, make_spec: MakeSpec, finish: Finish, open_lane: OpenLane
) -> None:
    async with opened(settings, max_queued_candidates=20, image_budget_bytes=12_000) as queue:
        lane = await open_lane(queue)
        await queue.submit(make_spec(num_samples=16), cost=1)
        with pytest.raises(Overloaded, match="16 candidates wait, and 5 more would pass the limit of 20") as full:
            await queue.submit(make_spec(num_samples=5), cost=1)
        assert full.value.retry_after
        with pytest.raises(Overloaded, match=r"images of other jobs hold [\d,]+ of 12,000 bytes"):
            await queue.submit(make_spec(num_samples=2, top_k=2), cost=1)
        with pytest.raises(InvalidRequest, match="the images of this job may take 21,528 bytes") as never:
            await queue.submit(make_spec(num_samples=4, top_k=4), cost=1)
        assert never.value.field == "top_k"
        await drain(lane, finish)
        await queue.submit(make_spec(num_samples=2, top_k=2), cost=1)  # real images are smaller than feared


async def test_a_full_server_refuses_jobs_and_finishes_those_it_has(
    settings: Settings, make_spec: MakeSpec, finish: Finish, open_lane: OpenLane
) -> None:
    async with opened(settings) as queue:
        lane = await open_lane(queue, capacity=16)
        spec = make_spec(num_samples=8, top_k=2)
        await queue.submit(spec, cost=1)
        used = (await queue.redis.info("memory"))["used_memory"]
        try:
            await queue.redis.config_set("maxmemory", int(used / 0.9))
            with pytest.raises(Unavailable, match="nearly full"):
                await queue.submit(make_spec(), cost=1)
            await queue.redis.config_set("maxmemory", used // 2)
            with pytest.raises(Unavailable, match="full"):
                await queue.submit(make_spec(), cost=1)
            for claim in await lane.claim(4, 0):
                await lane.heartbeat([claim], 3600.0)
                assert await lane.report(spec.id, [HeatProgress(claim.heat.index, 1, 2, 4)])
                assert await lane.complete(claim, finish(claim.heat))
            record = await queue.record(spec.id)
        finally:
            await queue.redis.config_set("maxmemory", 0)
        assert record.status is JobStatus.SUCCEEDED
        for index in leaders(spec, [c for outcome in record.outcomes for c in outcome.candidates]):
            assert await queue.image(spec.id, index)


async def test_ring_dispatches_in_turns_and_no_further_than_needed(
    settings: Settings, make_spec: MakeSpec, finish: Finish, open_lane: OpenLane
) -> None:
    async with opened(settings) as queue:
        lane = await open_lane(queue, capacity=8)
        large, small = make_spec(num_samples=2048), make_spec(num_samples=4)
        await queue.submit(large, cost=1)
        await queue.submit(small, cost=1)
        order = []
        while small.id not in order:
            [claim] = await lane.claim(1, 0)
            order.append(claim.entry.job)
            await lane.complete(claim, finish(claim.heat))
        assert len(order) <= 4  # what a worker of 8 holds, two heats, one heat more, and its own
        third = make_spec(num_samples=400)
        await queue.submit(third, cost=1)
        turns = []
        for _ in range(12):
            [claim] = await lane.claim(1, 0)
            turns.append(claim.entry.job)
            await lane.complete(claim, finish(claim.heat))
        late = turns[turns.index(third.id) :]
        assert late == [job for _ in late for job in (third.id, large.id)][: len(late)]


async def test_interactive_jobs_go_first(
    settings: Settings, make_spec: MakeSpec, finish: Finish, open_lane: OpenLane
) -> None:
    async with opened(settings) as queue:
        lane = await open_lane(queue)
        batch, quick = make_spec(num_samples=64, priority="batch"), make_spec(num_samples=16)
        await queue.submit(batch, cost=1)
        await queue.submit(quick, cost=1)
        done = [claim.entry.job for claim in await drain(lane, finish)]
        assert done[:4] == [quick.id] * 4
        assert done[4:] == [batch.id] * 16


async def test_results_expire_and_are_then_gone(
    settings: Settings, make_spec: MakeSpec, finish: Finish, open_lane: OpenLane
) -> None:
    async with opened(settings, result_ttl_seconds=1) as queue:
        lane = await open_lane(queue)
        done, dropped = make_spec(), make_spec()
        for spec in (done, dropped):
            await queue.submit(spec, idempotency_key=spec.id, cost=1)
        await queue.cancel(dropped.id)
        await drain(lane, finish)
        await asyncio.sleep(1.1)
        for call in (queue.record, queue.spec, queue.cancel):
            with pytest.raises(JobGone, match="longer ago than results are kept"):
                await call(done.id)
            with pytest.raises(JobNotFound):  # a canceled job leaves nothing
                await call(dropped.id)
        for spec, error in ((done, JobGone), (dropped, JobNotFound)):
            assert await queue.redis.keys(f"{settings.namespace}:job:{spec.id}*") == []
            with pytest.raises(error):
                await types(queue, spec.id)
        with pytest.raises(JobNotFound):
            await queue.record("0" * 32)
        await queue.submit(make_spec(), cost=1)
        assert (await queue.backlog()).image_bytes < 2 * 32 * 32 * 3.1  # those of the new job only


async def test_a_heat_handed_back_is_no_delivery_and_one_that_failed_is(
    settings: Settings, make_spec: MakeSpec, open_lane: OpenLane
) -> None:
    async with opened(settings) as queue:
        lane = await open_lane(queue)
        spec = make_spec(num_samples=4)
        await queue.submit(spec, cost=1)
        for delivery_action, deliveries in [
            ("released", 1),
            ("retried", 1),
            ("released", 2),
            ("retried", 2),
            ("dead_lettered", 3),
        ]:
            [claim] = await lane.claim(4, 0)
            assert claim.deliveries == deliveries
            await lane.give_back(claim, delivery_action, 'it said "no"')
        assert await lane.claim(4, 0) == []
        record = await queue.record(spec.id)
        assert (record.status, record.error) == (JobStatus.FAILED, 'it said "no"')
        [(_, letter)] = await queue.redis.xrange(queue.keys("dead_letters"))
        assert (letter[b"job"].decode(), letter[b"deliveries"]) == (spec.id, b"3")
        events = [event async for event in events_of(queue, spec.id)]
        assert events[-1].data == {"status": "failed", "error": 'it said "no"'}
        assert await types(queue, spec.id, events[-2].id) == ["failed"]
        assert await types(queue, spec.id, events[-1].id) == []


async def test_worker_that_leaves_releases_heats_it_never_saw(
    settings: Settings, make_spec: MakeSpec, open_lane: OpenLane
) -> None:
    async with opened(settings) as queue:
        one, two = await open_lane(queue), await open_lane(queue, "two")
        await queue.submit(make_spec(), cost=1)
        [held] = await one.claim(1, 0)
        ready = queue.keys("ready", one.pair, "interactive")
        await queue.redis.xreadgroup(GROUP, "one", {ready: ">"}, count=1)  # the reply is lost
        await one.leave([held])
        claims = await two.claim(4, 0)
        assert sorted(claim.heat.index for claim in claims) == [0, 1]
        assert {claim.deliveries for claim in claims} == {1}
        consumers = await queue.redis.xinfo_consumers(ready, GROUP)
        assert [consumer["name"] for consumer in consumers] == [b"two"]


@pytest.mark.parametrize("draft", [None, Draft(num_inference_steps=1, keep=0.25)])
def test_a_record_says_all_and_is_small(make_spec: MakeSpec, finish: Finish, draft: Draft | None) -> None:
    spec = make_spec(num_samples=16, heat_size=16, draft=draft)
    outcome = finish(spec.heat(0))
    assert sum(candidate.solved_in_full for candidate in outcome.candidates) == (16 if draft is None else 4)
    record = pack_heat(outcome)
    assert len(record) < (100 if draft is None else 120) * 16
    again = unpack_heat(spec, 0, record)
    assert (again.candidates, again.usage) == (outcome.candidates, outcome.usage)


@pytest.mark.parametrize(
    ("info", "fault"),
    [
        ({"redis_version": "6.2.14"}, "needs Redis 7.0 or newer"),
        (
            {"redis_version": "7.0.15", "maxmemory": 1, "maxmemory_policy": "allkeys-lru"},
            "would delete keys when its memory is full",
        ),
    ],
)
def test_a_server_that_cannot_keep_a_queue_is_refused(info: dict[str, object], fault: str) -> None:
    with pytest.raises(SetupError, match=fault):
        check_server(info)


def test_valkey_is_taken_from_its_first_version_on() -> None:
    check_server({"server_name": "valkey", "valkey_version": "7.2.4", "redis_version": "7.2.4"})


def test_a_namespace_cannot_spell_a_pattern() -> None:
    with pytest.raises(ValueError, match="a namespace is made of"):
        Keys("a%s")


async def brought_forward(queue: Queue, job: str, seconds: float) -> None:
    """Move the deadline of a job to `seconds` from now."""
    at = round(1000 * (time.time() + seconds))
    await queue.redis.hset(queue.keys("job", job), "deadline", at)
    await queue.redis.zadd(queue.keys("deadlines"), {job: at})


@pytest.mark.parametrize("waiter", ["a heartbeat", "an API process"])
async def test_a_deadline_ends_a_job_with_the_best_so_far(
    settings: Settings, make_spec: MakeSpec, finish: Finish, open_lane: OpenLane, waiter: str
) -> None:
    async with opened(settings) as queue:
        lane = await open_lane(queue)
        late, never = (make_spec(num_samples=12, top_k=2, deadline_seconds=3600) for _ in range(2))
        for spec in (late, never):
            await queue.submit(spec, cost=1)
        [claim] = await lane.claim(1, 0)
        await lane.complete(claim, finish(claim.heat))
        [held] = await lane.claim(1, 0)
        for spec in (late, never):  # as if it had been near from the start
            await brought_forward(queue, spec.id, 0.3)
        await asyncio.sleep(0.4)
        assert (await queue.record(late.id)).status is JobStatus.RUNNING, "a read ends no job"
        await (lane.heartbeat([held], 3600.0) if waiter == "a heartbeat" else queue.expire_jobs())
        for spec, last in ((late, "result"), (never, "failed")):
            assert (await types(queue, spec.id))[-1] == last
        record = await queue.record(late.id)
        assert (record.status, record.stopped, record.progress.judged) == (JobStatus.SUCCEEDED, "deadline", 4)
        for index in leaders(late, [c for outcome in record.outcomes for c in outcome.candidates]):
            assert await queue.image(late.id, index)
        record = await queue.record(never.id)
        assert (record.status, record.stopped) == (JobStatus.FAILED, "deadline")
        assert record.error == "its deadline passed before it was started"
        assert not await lane.complete(held, finish(held.heat))  # too late
        assert await lane.claim(4, 0) == []
        backlog = await queue.backlog()
        assert (backlog.jobs, backlog.candidates, backlog.tflops) == (0, 0, 0.0)
        at_once = make_spec(deadline_seconds=0.0004)
        await queue.submit(at_once, cost=1)
        await asyncio.sleep(0.01)
        await queue.expire_jobs()
        assert (await queue.record(at_once.id)).status is JobStatus.FAILED


async def test_a_caller_and_the_work_have_limits_of_their_own(
    settings: Settings, make_spec: MakeSpec, finish: Finish, open_lane: OpenLane
) -> None:
    limits = {"max_queued_candidates_per_key": 10, "max_queued_tflops": 100.0}
    async with opened(settings, **limits) as queue:
        lane = await open_lane(queue)
        await lane.heartbeat((), 3600.0, tflops_per_second=5.0)
        await queue.workers()
        await queue.submit(make_spec(num_samples=8), cost=40, caller="one")
        with pytest.raises(Overloaded, match="8 candidates of this key wait, and 4 more would pass its limit of 10"):
            await queue.submit(make_spec(num_samples=4), cost=1, caller="one")
        gone, _ = await queue.submit(make_spec(num_samples=8), cost=40, caller="two")
        with pytest.raises(Overloaded, match="about 80 TFLOP of work wait") as refused:
            await queue.submit(make_spec(num_samples=1), cost=60, caller="three")
        assert refused.value.retry_after == (80 + 60 - 100) / 5
        await queue.cancel(gone)
        await drain(lane, finish)
        assert await queue.redis.hgetall(queue.keys("callers")) == {}
        await queue.submit(make_spec(num_samples=10), cost=1, caller="one")


async def test_worker_that_died_before_the_clock_was_set_back_is_not_live(
    settings: Settings, open_lane: OpenLane
) -> None:
    async with opened(settings) as queue:
        await open_lane(queue, "dead")
        live = await open_lane(queue, "live")
        seconds, _ = await queue.redis.time()
        workers = queue.keys("workers", live.pair)
        await queue.redis.zadd(workers, {"dead": 1000 * (seconds + 2 * 3600)})  # as the clock would have it
        await live.heartbeat((), 10.0)
        assert [info.worker for info in await queue.workers()] == ["live"]
