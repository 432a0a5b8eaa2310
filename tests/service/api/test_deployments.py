"""Which deployment serves a request, from announcements in a real queue."""

from collections.abc import Awaitable, Callable
from contextlib import aclosing

from bestofn.service.api.deployments import Deployed
from bestofn.service.core.settings import Settings
from bestofn.service.queue.consumer import QueueConsumer
from bestofn.service.queue.job_queue import Queue


async def test_finals_wait_for_a_worker_that_is_away_for_a_moment(
    settings: Settings, open_lane: Callable[..., Awaitable[QueueConsumer]]
) -> None:
    async with aclosing(await Queue.connect(settings)) as queue:
        lane = await open_lane(queue)
        lane.info = lane.info.model_copy(update={"pairwise_judge": "looker"})
        await lane.heartbeat((), 60)
        await lane.heartbeat((), 0)
        away = await Deployed(queue).choose(None, None, finals=True)
        assert (away.pairwise_judge, away.capacities) == ("looker", ())
        await open_lane(queue, "without")
        assert (await Deployed(queue).choose(None, None, finals=True)).pairwise_judge is None
