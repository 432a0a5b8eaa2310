"""Reads of jobs: each heat is decoded once, winners without any, and what is kept has a bound."""

import asyncio
import tracemalloc
from collections.abc import Awaitable, Callable

import pytest

from bestofn.judge.verdict import Verdict
from bestofn.service.core.errors import JobNotFound
from bestofn.service.core.jobs import Candidate, Draft, Heat, HeatOutcome, JobSpec, JobStatus, Usage
from bestofn.service.core.results import assemble
from bestofn.service.core.settings import Settings
from bestofn.service.queue.codec import decode_heats, pack_heat
from bestofn.service.queue.consumer import QueueConsumer
from bestofn.service.queue.job_reader import AT_ONCE, CANDIDATE_BYTES, KEPT_SECONDS, JobReader, read_winners
from tests.service.queue.opening import opened

MakeSpec = Callable[..., JobSpec]
Finish = Callable[[Heat], HeatOutcome]
OpenLane = Callable[..., Awaitable[QueueConsumer]]


async def complete(lane: QueueConsumer, finish: Finish, heats: int) -> None:
    for _ in range(heats):
        [claim] = await lane.claim(1, 0)
        await lane.complete(claim, finish(claim.heat))


async def test_record_read_again_decodes_new_heats_alone(
    settings: Settings, make_spec: MakeSpec, finish: Finish, open_lane: OpenLane
) -> None:
    """Page after page, by many readers at once, of a running job and of one that has ended."""
    async with opened(settings) as queue:
        lane = await open_lane(queue, capacity=128)
        spec = make_spec(num_samples=2 * AT_ONCE, heat_size=128, num_inference_steps=1)
        await queue.submit(spec, cost=1000)
        for done in range(1, 5):
            await complete(lane, finish, 1)
            records = await asyncio.gather(*(queue.record(spec.id) for _ in range(10)))
            assert queue.reader.decoded == 128 * done
            assert all(len(record.outcomes) == done for record in records)
        record = await queue.record(spec.id)
        assert (record.status, queue.reader.decoded) == (JobStatus.SUCCEEDED, 2 * AT_ONCE)
        page = assemble(spec, record.status, record.outcomes, ranking=record.ranking, offset=300, limit=1)
        assert [candidate.index for candidate in page.candidates] == [300]
        async with opened(settings) as other:
            fresh = await other.record(spec.id)
            assert (other.reader.decoded, fresh) == (2 * AT_ONCE, record)


async def test_record_whose_heats_were_dropped_is_decoded_again(
    settings: Settings, make_spec: MakeSpec, finish: Finish, open_lane: OpenLane
) -> None:
    async with opened(settings) as queue:
        lane = await open_lane(queue)
        spec = make_spec(num_samples=12)
        await queue.submit(spec, cost=1)
        await complete(lane, finish, 2)
        assert len((await queue.record(spec.id)).outcomes) == 2
        await queue.redis.hdel(queue.keys("heats", spec.id), "1")  # as an early stop does
        assert [outcome.heat for outcome in (await queue.record(spec.id)).outcomes] == [0]
        await queue.redis.delete(queue.keys("job", spec.id))
        with pytest.raises(JobNotFound):
            await queue.record(spec.id)
        assert queue.reader.kept_bytes == 0


async def test_best_candidate_of_a_job_with_drafts_has_its_draft(
    settings: Settings, make_spec: MakeSpec, finish: Finish, open_lane: OpenLane
) -> None:
    async with opened(settings) as queue:
        lane = await open_lane(queue, capacity=16)
        spec = make_spec(num_samples=32, heat_size=16, draft=Draft(num_inference_steps=1, keep=0.25))
        await queue.submit(spec, cost=1)
        await complete(lane, finish, 1)
        best = (await queue.record(spec.id)).progress.best
        assert best is not None
        assert best.draft is not None


async def test_winners_are_read_without_decoding_heats(
    settings: Settings, make_spec: MakeSpec, finish: Finish, open_lane: OpenLane
) -> None:
    async with opened(settings) as queue:
        lane = await open_lane(queue)
        spec = make_spec(num_samples=24, top_k=3)
        await queue.submit(spec, cost=1)
        await complete(lane, finish, 3)
        before = await read_winners(queue, spec.id)
        assert (before.status, before.candidates) == (JobStatus.RUNNING, ())
        await complete(lane, finish, 3)
        winners = await read_winners(queue, spec.id)
        assert queue.reader.decoded == 0
        record = await queue.record(spec.id)
        images = assemble(record.spec, record.status, record.outcomes).images
        assert [candidate.index for candidate in winners.candidates] == [image.candidate for image in images]
        assert winners.spec == spec


async def test_kept_heats_stay_within_the_bound(
    settings: Settings, make_spec: MakeSpec, finish: Finish, open_lane: OpenLane
) -> None:
    async with opened(settings) as queue:
        lane = await open_lane(queue, capacity=16)
        specs = [make_spec(num_samples=16, heat_size=16) for _ in range(4)]
        for spec in specs:
            await queue.submit(spec, cost=1)
        await complete(lane, finish, 4)
        bound = 60 * CANDIDATE_BYTES
        reader = JobReader(queue.scripts, bound)
        for _ in range(2):
            for spec in specs:
                record = await reader.record(spec.id)
                assert record is not None
                assert [c.index for outcome in record.outcomes for c in outcome.candidates] == list(range(16))
                assert 0 < reader.kept_bytes <= bound
        assert reader.decoded > 4 * 16  # some had to go, and were decoded again
        reader.close()


async def test_decoded_heats_of_an_unread_job_are_not_kept(
    settings: Settings, make_spec: MakeSpec, finish: Finish, open_lane: OpenLane
) -> None:
    async with opened(settings) as queue:
        lane = await open_lane(queue)
        specs = [make_spec(num_samples=4) for _ in range(3)]
        for spec in specs:
            await queue.submit(spec, cost=1)
        await complete(lane, finish, 3)
        now = [0.0]
        reader = JobReader(queue.scripts, clock=lambda: now[0])
        for spec in specs:
            await reader.record(spec.id)
        three = reader.kept_bytes
        now[0] = KEPT_SECONDS + 1
        await reader.record(specs[0].id)
        assert (reader.decoded, reader.kept_bytes) == (3 * 4, three / 3)
        reader.close()


def test_decoded_candidate_takes_no_more_memory_than_is_counted(make_spec: MakeSpec) -> None:
    spec = make_spec(num_samples=4096, heat_size=16)
    heats = {}
    for heat in spec.heats():
        candidates = tuple(Candidate(i, 7 + i, Verdict("yes", i / 7, i / 9)) for i in heat.candidates)
        heats[b"%d" % heat.index] = pack_heat(HeatOutcome(heat.index, candidates, {}, Usage(heat.count))).encode()
    tracemalloc.start()
    try:
        decoded = decode_heats(spec.model_dump_json().encode(), heats)
        assert decoded.ranking.rounds
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(decoded.ranking.order) == 4096
    assert taken <= 4096 * CANDIDATE_BYTES
