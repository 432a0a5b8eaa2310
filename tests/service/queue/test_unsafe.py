"""Unsafe candidates in the queue: no image of theirs is stored, and a job that has no other one fails."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from bestofn.judge.verdict import UNSAFE
from bestofn.service.core.errors import ImageNotFound
from bestofn.service.core.jobs import Heat, HeatOutcome, JobSpec, JobStatus
from bestofn.service.core.results import ALL_UNSAFE, assemble, leaders
from bestofn.service.core.settings import Settings
from bestofn.service.queue.consumer import QueueConsumer
from bestofn.service.queue.job_reader import read_winners
from tests.service.queue.opening import opened

MakeSpec = Callable[..., JobSpec]
OpenLane = Callable[..., Awaitable[QueueConsumer]]
Finish = Callable[[Heat], HeatOutcome]


def with_unsafe(outcome: HeatOutcome, spec: JobSpec, unsafe: set[int]) -> HeatOutcome:
    """An outcome whose images of some candidates were refused."""
    candidates = tuple(replace(c, verdict=UNSAFE) if c.index in unsafe else c for c in outcome.candidates)
    best = leaders(spec, candidates)
    return replace(outcome, candidates=candidates, images=dict.fromkeys(best, b"image"))


@pytest.mark.parametrize("unsafe", [{1, 4, 5, 6, 7}, set(range(8))])
async def test_an_unsafe_candidate_is_counted_and_has_no_image(
    settings: Settings, make_spec: MakeSpec, finish: Finish, open_lane: OpenLane, unsafe: set[int]
) -> None:
    async with opened(settings) as queue:
        lane = await open_lane(queue)
        spec = make_spec(num_samples=8, top_k=5, thumbnails=True)
        await queue.submit(spec, cost=1)
        while claims := await lane.claim(1, 0):
            await lane.complete(claims[0], with_unsafe(finish(claims[0].heat), spec, unsafe))
        record = await queue.record(spec.id)
        safe = set(range(8)) - unsafe
        assert (record.status, record.error) == (
            (JobStatus.SUCCEEDED, None) if safe else (JobStatus.FAILED, ALL_UNSAFE)
        )
        assert record.thumbnails == safe
        for index in unsafe:
            with pytest.raises(ImageNotFound):
                await queue.image(spec.id, index)
        assert {candidate.index for candidate in (await read_winners(queue, spec.id)).candidates} == safe
        result = assemble(spec, record.status, record.outcomes, error=record.error, ranking=record.ranking)
        assert (result.unsafe, {image.candidate for image in result.images}) == (len(unsafe), safe)
        assert result.warnings == [f"the image checker refused {len(unsafe)} of 8 candidates as unsafe"]


async def test_a_deadline_with_unsafe_candidates_alone_fails_the_job(
    settings: Settings, make_spec: MakeSpec, finish: Finish, open_lane: OpenLane
) -> None:
    async with opened(settings) as queue:
        lane = await open_lane(queue)
        spec = make_spec(num_samples=8, deadline_seconds=3600)
        await queue.submit(spec, cost=1)
        [claim] = await lane.claim(1, 0)
        await lane.complete(claim, with_unsafe(finish(claim.heat), spec, set(range(8))))
        await queue.redis.zadd(queue.keys("deadlines"), {spec.id: 0})
        await queue.expire_jobs()
        record = await queue.record(spec.id)
        assert (record.status, record.stopped, record.error) == (JobStatus.FAILED, "deadline", ALL_UNSAFE)
