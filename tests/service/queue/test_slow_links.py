"""A queue's server behind a slow link: files take longer than any reply may, and still arrive, sent once."""

import asyncio
import hashlib
import os
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bestofn.service.core.jobs import Heat, HeatOutcome, JobSpec, JobStatus, SentImage
from bestofn.service.core.results import leaders
from bestofn.service.core.settings import Settings
from bestofn.service.queue.connection import REPLY_SECONDS
from bestofn.service.queue.consumer import QueueConsumer
from bestofn.service.queue.embedded_server import server_binary
from bestofn.service.queue.job_queue import Queue
from tests import network
from tests.waiting import PATIENCE

SIZE = 500_000  # three of them take 12 s at 1 Mbit/s
pytestmark = pytest.mark.skipif(not network.POSSIBLE, reason="needs root and iproute2")


@pytest.fixture
async def far(tmp_path: Path) -> AsyncIterator[Queue]:
    """A queue whose server is behind a link of 1 Mbit/s."""
    with network.namespace() as space:
        if space is None:
            pytest.skip("no network namespaces here")
        options = ["--port", "7778", "--bind", space.there, "--protected-mode", "no", "--save", ""]
        process = subprocess.Popen([*space.prefix, server_binary(), *options], stdout=subprocess.DEVNULL)
        queue = Queue(f"redis://{space.there}:7778", Settings(data_dir=tmp_path))
        try:
            async with asyncio.timeout(PATIENCE):
                while await queue.refuses() is not None:
                    await asyncio.sleep(0.1)
            try:
                space.limit("1mbit")
            except (OSError, subprocess.CalledProcessError):
                pytest.skip("this kernel limits no link's rate")
            yield queue
        finally:
            await queue.aclose()
            process.kill()
            process.wait()


async def test_files_pass_a_slow_link_in_both_directions(
    far: Queue,
    make_spec: Callable[..., JobSpec],
    finish: Callable[[Heat], HeatOutcome],
    open_lane: Callable[..., Awaitable[QueueConsumer]],
) -> None:
    lane = await open_lane(far)
    image, tokenizer = os.urandom(SIZE), os.urandom(SIZE)
    drawn = make_spec(num_samples=4)
    await far.submit(drawn, cost=1.0)
    [claim] = await lane.claim(1, 0)
    outcome = finish(claim.heat)
    kept = leaders(drawn, outcome.candidates)[0]
    zero = dict.fromkeys(("seed", "width", "height", "num_inference_steps", "guidance_scale"), 0)
    sent = make_spec(num_samples=1, heat_size=1, sent=[SentImage(format="png", size=SIZE)], **zero)

    began, before = time.monotonic(), await far.redis.info("stats")
    await asyncio.gather(
        lane.complete(claim, replace(outcome, images=dict.fromkeys(outcome.images, image))),
        lane.store_tokenizers([tokenizer]),
        far.submit(sent, cost=1.0, sent=[image]),
    )
    assert time.monotonic() - began > REPLY_SECONDS, "the link is too fast for this test"
    assert (await far.record(drawn.id)).status is JobStatus.SUCCEEDED
    [judged], won, read = await asyncio.gather(
        lane.claim(1, 0), far.image(drawn.id, kept), far.tokenizer(hashlib.sha256(tokenizer).hexdigest())
    )
    assert (judged.heat.images, won, read) == ({0: image}, image, tokenizer)
    after = await far.redis.info("stats")
    for direction in ("total_net_input_bytes", "total_net_output_bytes"):
        assert after[direction] - before[direction] < 3.5 * SIZE, "some file was sent again"
