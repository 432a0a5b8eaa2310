"""Streams of images in OpenAI's events, read by the openai package through a real socket."""

import base64
import io
import json
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, aclosing
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from PIL import Image

from bestofn.service.api.openai_answers import thresholds
from bestofn.service.core.jobs import Candidate, Heat, HeatOutcome
from bestofn.service.core.settings import Settings
from bestofn.service.engine.fake import FAILS, fake_image
from bestofn.service.media.codec import thumbnail
from bestofn.service.queue.claims import HeatProgress, Judgement
from bestofn.service.queue.consumer import QueueConsumer
from bestofn.service.queue.job_queue import Queue
from tests.waiting import PATIENCE, until

Serving = Callable[[Settings], AbstractContextManager[Any]]
OpenLane = Callable[..., Awaitable[QueueConsumer]]


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def margin(candidate: Candidate) -> float:
    return candidate.verdict.yes_logit - candidate.verdict.no_logit


def test_partial_images_are_the_best_so_far_and_the_last_event_is_the_winner(served: Any) -> None:
    with OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client:
        stream = client.images.generate(
            prompt="a red star", n=2, stream=True, partial_images=3, extra_body={"num_samples": 64, "seed": 100}
        )
        *partials, completed = stream
        assert [event.type for event in partials] == ["image_generation.partial_image"] * len(partials)
        assert 1 <= len(partials) <= 3
        assert [event.partial_image_index for event in partials] == list(range(len(partials)))
        logits = [event.verdict["yes_logit"] - event.verdict["no_logit"] for event in partials]
        assert logits == sorted(logits)
        for event in partials:
            image = opened(event.b64_json)
            assert f"{image.width}x{image.height}" == event.size
            assert (image.format or "").lower() == event.output_format
        assert completed.type == "image_generation.completed"
        assert (completed.size, completed.output_format, completed.quality) == ("64x64", "png", "xhigh")
        assert completed.usage.output_tokens == 64 * 4
        whole = httpx.get(f"{served.url}/jobs/{completed.job}", timeout=PATIENCE).json()
        assert [image["seed"] for image in completed.data] == [image["seed"] for image in whole["images"]]
        best = fake_image(whole["images"][0]["seed"], 64, 64)
        assert opened(completed.b64_json).getpixel((0, 0)) == best.getpixel((0, 0))


async def test_a_partial_image_is_full_where_its_heat_is_done_and_else_a_thumbnail(
    idle: Settings, serving: Serving, open_lane: OpenLane, finish: Callable[[Heat], HeatOutcome]
) -> None:
    with serving(idle) as api:
        async with (
            aclosing(await Queue.connect(idle)) as queue,
            AsyncOpenAI(base_url=f"{api.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client,
        ):
            lane = await open_lane(queue)
            stream = await client.images.generate(
                prompt="p", stream=True, partial_images=2, extra_body={"num_samples": 32, "seed": 1}
            )
            events = aiter(stream)
            (claim,) = await lane.claim(1, PATIENCE)
            outcome = finish(claim.heat)
            assert len(outcome.candidates) == 16
            await lane.report(
                claim.entry.job,
                [HeatProgress(0, 11, 0, 0)],
                [Judgement(c, thumbnail(fake_image(c.seed, 320, 160))) for c in outcome.candidates[:11]],
            )
            drafted = await anext(events)
            best = max(outcome.candidates[:11], key=margin)
            assert (drafted.judged, drafted.candidate, drafted.seed) == (11, best.index, best.seed)
            assert (drafted.output_format, drafted.size, opened(drafted.b64_json).format) == ("webp", "256x128", "WEBP")
            await lane.complete(claim, outcome)
            (claim,) = await lane.claim(1, PATIENCE)
            second = finish(claim.heat)
            await lane.report(claim.entry.job, [], [Judgement(c) for c in sorted(second.candidates, key=margin)[:6]])
            full = await anext(events)
            assert (full.judged, full.output_format, opened(full.b64_json).format) == (22, "png", "PNG")
            assert full.candidate == max(outcome.candidates, key=margin).index
            assert full.partial_image_index == 1
            await lane.complete(claim, second)
            completed = await anext(events)
            assert completed.type == "image_generation.completed"
            assert [event async for event in events] == []


def test_a_job_that_fails_raises_openais_error(served: Any) -> None:
    with OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client:
        with pytest.raises(openai.APIError, match="the prompt asked for it") as caught:
            list(client.images.generate(prompt=FAILS, stream=True, partial_images=1))
        assert (caught.value.code, caught.value.type) == ("job_failed", "server_error")
        with pytest.raises(openai.BadRequestError, match="need stream: true"):
            client.images.generate(prompt="p", partial_images=2)
        with pytest.raises(openai.BadRequestError, match="at most 3, got 4"):
            client.images.generate(prompt="p", stream=True, partial_images=4)


@pytest.mark.parametrize("key", [None, "mine"])
def test_a_reader_that_hangs_up_cancels_its_job_unless_it_has_a_key(served: Any, key: str | None) -> None:
    body = {"prompt": "p", "num_samples": 4096, "num_inference_steps": 100, "stream": True}
    headers = {} if key is None else {"Idempotency-Key": f"{key}-{served.url}"}
    with httpx.stream(
        "POST", f"{served.url}/v1/images/generations", json=body, headers=headers, timeout=PATIENCE
    ) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        job = f"{served.url}{answer.headers['location']}"
        until(lambda: httpx.get(job, timeout=PATIENCE).json()["status"] == "running")
    if key is None:
        until(lambda: httpx.get(job, timeout=PATIENCE).json()["status"] == "canceled")
    else:
        assert httpx.get(job, timeout=PATIENCE).json()["status"] == "running"
        httpx.delete(job, timeout=PATIENCE)


def test_the_events_have_the_names_that_openais_have(served: Any) -> None:
    body = {"prompt": "p", "quality": "low", "stream": True, "response_format": "url"}
    text = httpx.post(f"{served.url}/v1/images/generations", json=body, timeout=PATIENCE).text
    name, data = text.strip().replace("\r", "").split("\n")
    assert name == "event: image_generation.completed"
    event = json.loads(data.removeprefix("data: "))
    openais = {"type", "b64_json", "created_at", "size", "quality", "background", "output_format", "usage"}
    assert openais <= event.keys()


@pytest.mark.parametrize(
    ("num_samples", "partial_images", "expected"),
    [(16, 0, []), (16, 1, [8]), (16, 3, [4, 8, 12]), (2, 3, [1]), (1, 3, []), (100, 2, [34, 67])],
)
def test_partial_images_come_at_equal_parts(num_samples: int, partial_images: int, expected: list[int]) -> None:
    assert thresholds(num_samples, partial_images) == expected
