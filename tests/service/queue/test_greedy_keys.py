"""One key cannot shut out another: turns, waiting candidates, bytes of images, and bytes that are kept of its jobs."""

from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bestofn.service.core.errors import InvalidRequest, Overloaded
from bestofn.service.core.jobs import Heat, HeatOutcome, JobSpec, JobStatus
from bestofn.service.core.schemas import CallerOut
from bestofn.service.core.settings import Settings
from bestofn.service.queue.admission import own_limit
from bestofn.service.queue.claims import Claim
from bestofn.service.queue.consumer import QueueConsumer
from bestofn.service.queue.job_queue import Queue
from bestofn.service.queue.keys import GROUP
from bestofn.service.queue.stats import read_caller, read_stats
from tests.service.queue.opening import opened
from tests.waiting import events_of

MakeSpec = Callable[..., JobSpec]
Finish = Callable[[Heat], HeatOutcome]
OpenLane = Callable[..., Awaitable[QueueConsumer]]
MIB = 2**20


class Crew:
    """Workers that fill their slots with heats, and complete the one that each has held longest."""

    def __init__(self, lanes: list[QueueConsumer], finish: Finish) -> None:
        self.lanes, self.finish = lanes, finish
        self.held: dict[str, list[Claim]] = {lane.worker: [] for lane in lanes}
        self.claimed: list[Claim] = []

    async def fill(self) -> None:
        for lane in self.lanes:
            held = self.held[lane.worker]
            while sum(claim.heat.count for claim in held) < lane.info.capacity:
                if not (claims := await lane.claim(1, 0)):
                    break
                held += claims
                self.claimed += claims

    async def complete(self) -> None:
        for lane in self.lanes:
            if held := self.held[lane.worker]:
                claim = held.pop(0)
                await lane.complete(claim, self.finish(claim.heat))


async def holdings(queue: Queue) -> CallerOut:
    """What the key "greedy" holds, with its limits."""
    return await read_caller(queue, (await read_stats(queue)).queue, "greedy")


async def unread(queue: Queue, lane: QueueConsumer) -> int:
    """Heats that are dispatched and not claimed."""
    ready = queue.keys("ready", lane.pair, "interactive")
    return int(await queue.redis.xlen(ready)) - int((await queue.redis.xpending(ready, GROUP))["pending"])


@pytest.mark.parametrize(("jobs", "num_samples", "heat_size"), [(400, 4, 4), (1, 1600, 16)])
async def test_another_keys_job_waits_for_dispatched_heats_alone(
    settings: Settings,
    make_spec: MakeSpec,
    finish: Finish,
    open_lane: OpenLane,
    jobs: int,
    num_samples: int,
    heat_size: int,
) -> None:
    async with opened(settings) as queue:
        crew = Crew([await open_lane(queue, name, 16) for name in ("one", "two")], finish)
        for _ in range(jobs):
            await queue.submit(make_spec(num_samples=num_samples, heat_size=heat_size), cost=1, caller="greedy")
        for _ in range(3):
            await crew.fill()
            await crew.complete()
        await crew.fill()
        small = make_spec(num_samples=4)
        await queue.submit(small, cost=1, caller="other")
        position = await queue.position(small)
        before, waiting = len(crew.claimed), await unread(queue, crew.lanes[0])
        while small.id not in [claim.entry.job for claim in crew.claimed]:
            await crew.complete()
            await crew.fill()
        order = [claim.entry.job for claim in crew.claimed[before:]]
        assert order.index(small.id) <= waiting <= len(crew.lanes)
        assert position.position == 1


async def test_keys_share_candidates_whatever_the_size_and_number_of_their_jobs(
    settings: Settings, make_spec: MakeSpec, finish: Finish, open_lane: OpenLane
) -> None:
    async with opened(settings) as queue:
        lane = await open_lane(queue, capacity=16)
        owners: dict[str, str] = {}
        jobs = {"many": [4] * 60, "large": [400], "two": [120, 120]}
        for caller, sizes in jobs.items():
            for num_samples in sizes:
                spec = make_spec(num_samples=num_samples, heat_size=min(num_samples, 16))
                await queue.submit(spec, cost=1, caller=caller)
                owners[spec.id] = caller
        drawn: Counter[str] = Counter()
        for _ in range(70):
            [claim] = await lane.claim(1, 0)
            drawn[owners[claim.entry.job]] += claim.heat.count
            if drawn["many"] > 16 + 4 * 4:  # past what was dispatched before the others came
                assert max(drawn.values()) - min(drawn.values()) <= 48, drawn
            await lane.complete(claim, finish(claim.heat))
        assert min(drawn.values()) > 150, drawn


async def test_a_key_that_comes_again_and_again_goes_on_where_its_last_turn_ended(
    settings: Settings, make_spec: MakeSpec, finish: Finish, open_lane: OpenLane
) -> None:
    async with opened(settings) as queue:
        lane = await open_lane(queue)
        await queue.submit(make_spec(num_samples=400), cost=1, caller="patient")
        drawn: Counter[bool] = Counter()
        pressing: set[str] = set()
        for _ in range(40):
            spec = make_spec(num_samples=4)
            pressing.add(spec.id)
            await queue.submit(spec, cost=1, caller="a pressing one")
            [claim] = await lane.claim(1, 0)
            drawn[claim.entry.job in pressing] += 1
            await lane.complete(claim, finish(claim.heat))
        assert abs(drawn[True] - drawn[False]) <= 4, drawn


async def test_one_key_cannot_have_all_waiting_candidates(
    settings: Settings, make_spec: MakeSpec, open_lane: OpenLane
) -> None:
    async with opened(settings, max_queued_candidates=400) as queue:
        await open_lane(queue)
        await queue.submit(make_spec(num_samples=300), cost=1, caller="greedy")
        with pytest.raises(Overloaded, match="300 candidates of this key wait, and 1 more would pass its limit of 300"):
            await queue.submit(make_spec(num_samples=1), cost=1, caller="greedy")
        await queue.submit(make_spec(num_samples=75), cost=1, caller="other")
        with pytest.raises(Overloaded, match="75 candidates of this key wait, and 1 more would pass its limit of 75"):
            await queue.submit(make_spec(num_samples=1), cost=1, caller="other")
        await queue.submit(make_spec(num_samples=25), cost=1)  # without keys there are no shares


@pytest.mark.parametrize(
    ("limit", "caller", "said"),
    [
        (
            {"max_queued_candidates": 40},
            "greedy",
            "at most 30 candidates of a key may wait on this server, got a job of",
        ),
        ({"max_queued_candidates": 30}, "", "at most 30 candidates may wait on this server, got a job of 31"),
        ({"max_queued_candidates_per_key": 30}, "greedy", "at most 30 candidates of a key may wait"),
        ({"max_queued_tflops": 0.8}, "greedy", r"at most 0\.6 TFLOP of a key may wait .* takes about 0\.7;"),
    ],
)
async def test_job_that_no_empty_queue_would_take_is_invalid_and_not_too_early(
    limit: dict[str, float], caller: str, said: str, settings: Settings, make_spec: MakeSpec, open_lane: OpenLane
) -> None:
    async with opened(settings, **limit) as queue:
        await open_lane(queue)
        with pytest.raises(InvalidRequest, match=said) as refused:
            await queue.submit(make_spec(num_samples=31), cost=0.7, caller=caller)
        assert refused.value.field == "num_samples"


async def test_one_key_cannot_have_all_waiting_work(
    settings: Settings, make_spec: MakeSpec, finish: Finish, open_lane: OpenLane
) -> None:
    async with opened(settings, max_queued_tflops=400.0) as queue:
        lane = await open_lane(queue)
        await lane.heartbeat((), 3600.0, tflops_per_second=5.0)
        jobs = [make_spec(num_samples=4) for _ in range(3)]
        for spec in jobs:
            await queue.submit(spec, cost=100, caller="greedy")
        refusal = "about 300 TFLOP of this key wait, and this job would pass its limit of 300; ask for fewer"
        with pytest.raises(Overloaded, match=refusal) as refused:
            await queue.submit(make_spec(num_samples=1), cost=10, caller="greedy")
        assert refused.value.retry_after == (300 + 10 - 300) / 5
        await queue.submit(make_spec(), cost=75, caller="other")
        with pytest.raises(
            Overloaded, match="about 75 TFLOP of this key wait, and this job would pass its limit of 75"
        ):
            await queue.submit(make_spec(), cost=1, caller="other")
        await queue.submit(make_spec(), cost=25)  # without keys there are no shares
        own = await holdings(queue)
        assert (own.tflops, own.max_tflops) == (300, 225)
        [claim] = await lane.claim(1, 0)
        await lane.complete(claim, finish(claim.heat))
        await queue.cancel(jobs[1].id)
        assert (await holdings(queue)).tflops == 100
        await queue.cancel(jobs[2].id)
        assert not await queue.redis.hexists(queue.keys("held"), "gflop:greedy")


async def test_one_key_cannot_have_all_room_for_images(
    settings: Settings, make_spec: MakeSpec, open_lane: OpenLane
) -> None:
    async with opened(settings) as queue:
        await open_lane(queue)
        large = {"num_samples": 16, "top_k": 16, "width": 1024, "height": 1024, "priority": "batch"}
        jobs = [make_spec(**large) for _ in range(10)]
        accepted = []
        for spec in jobs:
            try:
                await queue.submit(spec, cost=1, caller="greedy")
            except Overloaded as error:
                refused = error.detail
            else:
                accepted.append(spec)
        assert len(accepted) == 7
        assert refused.startswith("images of this key hold 364,")
        assert "more would pass its limit of 402,653,184; try again when some have expired, or ask for fewer" in refused
        await queue.submit(make_spec(**large), cost=1, caller="other")
        own = await holdings(queue)
        assert own.image_bytes == 7 * (await read_stats(queue)).queue.image_bytes // 8
        assert own.max_image_bytes < 402_653_184
        for spec in accepted:
            await queue.cancel(spec.id)
        assert (await holdings(queue)).image_bytes == 0
        await queue.submit(jobs[-1], cost=1, caller="greedy")
        with pytest.raises(InvalidRequest, match="keeps at most 402,653,184 bytes for a key"):
            await queue.submit(make_spec(**{**large, "width": 3072, "height": 3072}), cost=1, caller="third")


async def test_key_kept_bytes_have_a_limit(settings: Settings, make_spec: MakeSpec, open_lane: OpenLane) -> None:
    async with opened(settings) as queue:
        await open_lane(queue)
        try:
            await queue.redis.config_set("maxmemory", 64 * MIB)
            jobs = [make_spec(num_samples=4096) for _ in range(10)]
            for spec in jobs:
                await queue.submit(spec, cost=1, caller="greedy")
            with pytest.raises(
                Overloaded, match=r"^jobs of this key hold 24,.* would pass its limit of 25,165,824; try"
            ):
                await queue.submit(make_spec(num_samples=4096), cost=1, caller="greedy")
            await queue.submit(make_spec(), cost=1, caller="other")
            for spec in jobs:
                await queue.cancel(spec.id)
            assert (await holdings(queue)).kept_bytes == 10 * 4096
            await queue.submit(make_spec(num_samples=4096), cost=1, caller="greedy")
        finally:
            await queue.redis.config_set("maxmemory", 0)


async def test_a_canceled_job_keeps_its_status_and_nothing_else(
    settings: Settings, make_spec: MakeSpec, finish: Finish, open_lane: OpenLane
) -> None:
    async with opened(settings) as queue:
        lane = await open_lane(queue, capacity=16)
        spec = make_spec(num_samples=16, prompt=10_000 * "x", negative_prompt="no y", top_k=4)
        await queue.submit(spec, cost=1, caller="k", idempotency_key="i", fingerprint="f")
        claims = await lane.claim(2, 0)
        await lane.complete(claims[0], finish(claims[0].heat))
        assert await queue.cancel(spec.id) is JobStatus.CANCELED
        assert not await lane.complete(claims[1], finish(claims[1].heat))
        left = await queue.redis.keys(f"{settings.namespace}:*{spec.id}*")
        assert set(left) == {queue.keys("job", spec.id).encode(), queue.keys("events", spec.id).encode()}
        assert await queue.redis.pttl(queue.keys("events", spec.id)) <= 10_000
        record = await queue.record(spec.id)
        assert (record.status, record.spec.prompt, record.spec.seed) == (JobStatus.CANCELED, "", spec.seed)
        assert [event.type async for event in events_of(queue, spec.id)] == ["canceled"]
        await queue.redis.delete(queue.keys("events", spec.id))
        assert [event.type async for event in events_of(queue, spec.id)] == ["canceled"]
        assert await queue.redis.memory_usage(queue.keys("job", spec.id)) < 4096
        assert await queue.submit(make_spec(), cost=1, caller="k", idempotency_key="i", fingerprint="f") == (
            spec.id,
            False,
        )


@given(st.lists(st.integers(0, 30), min_size=1), st.integers(4, 10**6))
def test_some_of_a_limit_is_always_left(callers: list[int], limit: int) -> None:
    own: Counter[int] = Counter()
    for caller in callers:  # each takes all that it may have
        own[caller] = max(own[caller], own_limit(own[caller], own.total(), limit))
    assert own.total() < limit
