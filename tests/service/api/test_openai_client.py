"""The OpenAI shape, called by the openai package itself through a real socket."""

import asyncio
import base64
import io
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from PIL import Image

from bestofn.service.api.routes.openai import models_of
from bestofn.service.core.openai_schemas import ImagesRequest
from bestofn.service.core.settings import Settings
from bestofn.service.core.workers import WorkerInfo
from bestofn.service.engine.fake import FAILS, FakeEngine, fake_image
from tests.waiting import PATIENCE

Serving = Callable[[Settings], AbstractContextManager[Any]]


@pytest.fixture
def client(served: Any) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client:
        yield client


def opened_image(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_images_come_in_the_answer_best_first(client: OpenAI) -> None:
    answer = client.images.generate(prompt="a red star", n=3, size="96x64", extra_body={"num_samples": 24, "seed": 100})
    assert answer.data is not None
    assert abs(answer.created - time.time()) < 3600
    assert (answer.size, answer.output_format) == ("96x64", "png")
    all_images = [opened_image(base64.b64decode(image.b64_json or "")) for image in answer.data]
    assert [image.size for image in all_images] == [(96, 64)] * 3
    seeds = [image.seed for image in answer.data]
    assert [image.getpixel((0, 0)) for image in all_images] == [fake_image(s, 1, 1).getpixel((0, 0)) for s in seeds]
    logits = [image.verdict["yes_logit"] - image.verdict["no_logit"] for image in answer.data]
    assert logits == sorted(logits, reverse=True)
    whole = httpx.get(f"{client.base_url.join('/')}jobs/{answer.job}", timeout=PATIENCE).json()
    assert [image["seed"] for image in whole["images"]] == seeds
    assert len(whole["candidates"]) == 24


def test_or_as_addresses(client: OpenAI) -> None:
    answer = client.images.generate(
        model="fake", prompt="p", n=2, size="auto", quality="low", response_format="url", output_format="webp", user="u"
    )
    assert answer.data is not None
    fetched = [opened_image(httpx.get(image.url or "", timeout=PATIENCE).content) for image in answer.data]
    assert [(image.format, image.size) for image in fetched] == [("WEBP", (64, 64))] * 2
    assert (answer.num_samples, answer.data[0].b64_json) == (4, None)


def test_an_answer_has_what_openais_has(client: OpenAI) -> None:
    fields = {"num_samples": 40, "num_inference_steps": 1}
    answer = client.images.generate(prompt="a red star", size="96x64", user="u7", extra_body=fields)
    assert (answer.quality, answer.background, answer.safety_identifier) == ("high", "opaque", "u7")
    assert answer.usage is not None
    text = answer.usage.input_tokens_details.text_tokens
    assert text == answer.usage.input_tokens > 0
    assert answer.usage.output_tokens == 40 * 3 * 2
    assert answer.usage.total_tokens == text + 240


def test_openai_field_without_effect_gives_a_warning(client: OpenAI) -> None:
    answer = client.images.generate(
        prompt="p",
        style="vivid",
        quality="low",
        background="transparent",
        moderation="low",
        output_compression=60,
        partial_images=0,
        stream=False,
        user="u",
    )
    unused = ["style", "output_compression", "moderation", "background"]
    assert [warning.partition(" ")[0] for warning in answer.warnings] == unused
    assert all("has no effect" in warning for warning in answer.warnings)
    assert answer.background == "opaque"
    asked = client.images.generate(prompt="p", quality="low", output_compression=100, background="auto")
    assert asked.warnings == []


def test_models_have_the_names_that_the_server_gives_them(served: Any, serving: Serving) -> None:
    aliases = {"gpt-image-1": "fake", "dall-e-3": "fake", "dall-e-2": "away"}
    named = served.settings.model_copy(update={"model_aliases": aliases, "response_format": "url"})
    with (
        serving(named) as api,
        OpenAI(base_url=f"{api.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client,
    ):
        answer = client.images.generate(model="gpt-image-1", prompt="p", quality="low")
        assert (answer.model["name"], answer.data and answer.data[0].b64_json) == ("fake", None)
        assert answer.data is not None
        assert httpx.get(answer.data[0].url or "", timeout=PATIENCE).headers["content-type"] == "image/png"
        shown = client.images.generate(model="dall-e-3", prompt="p", quality="low", response_format="b64_json")
        assert shown.data is not None
        assert shown.data[0].b64_json
        assert [model.id for model in client.models.list().data] == ["fake", "gpt-image-1", "dall-e-3"]
        assert client.models.retrieve("dall-e-3").width == 64
        with pytest.raises(openai.BadRequestError, match="model 'away' is not deployed"):
            client.images.generate(model="dall-e-2", prompt="p")


BAD: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "no such model": ({"model": "dall-e-3"}, "model", "choose from fake"),
    "an odd size": ({"size": "100x64"}, "size", "multiple of 32"),
    "no size": ({"size": "large"}, "size", "size must"),
    "too many": ({"n": 17}, "n", "n must be at most 16, got 17"),
    "more than are drawn": ({"n": 4, "extra_body": {"num_samples": 3}}, "n", "at most num_samples"),
    "said twice": ({"n": 2, "extra_body": {"top_k": 3}}, "n", "set the same option"),
    "a format": ({"output_format": "gif"}, "output_format", "'png', 'webp' or 'jpeg'"),
    "a typing mistake": ({"extra_body": {"qualty": "low"}}, "qualty", "did you mean quality?"),
    "a value of ours": ({"extra_body": {"num_inference_steps": 101}}, "num_inference_steps", "at most 100"),
}


@pytest.mark.parametrize(("fields", "param", "said"), BAD.values(), ids=BAD.keys())
def test_bad_requests_name_the_field(client: OpenAI, fields: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt="p", **fields)
    assert (caught.value.param, caught.value.type) == (param, "invalid_request_error")
    assert said in caught.value.message


def test_other_refusals_have_openais_form_too(client: OpenAI, served: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="is not deployed; choose from fake"):
        client.models.retrieve("a/b")
    with pytest.raises(openai.NotFoundError, match="nothing at /v1/images/edits"):
        client.post("/images/edits", cast_to=object, body={})
    with pytest.raises(openai.APIStatusError, match="Content-Type is 'text/plain'"):
        client.images.generate(prompt="p", extra_headers={"Content-Type": "text/plain"})
    with pytest.raises(openai.PermissionDeniedError, match=r"evil\.example"):
        client.models.list(extra_headers={"Host": "evil.example"})
    assert httpx.get(f"{served.url}/v2/models", timeout=PATIENCE).headers["content-type"] == "application/problem+json"


def test_a_job_that_fails_is_not_tried_again(client: OpenAI) -> None:
    with pytest.raises(openai.InternalServerError, match="the prompt asked for it") as caught:
        client.with_options(max_retries=2).images.generate(prompt=FAILS)
    assert (caught.value.code, caught.value.response.headers["x-should-retry"]) == ("job_failed", "false")
    assert caught.value.request.headers["x-stainless-retry-count"] == "0"


def test_a_job_that_takes_long_is_tried_again_only_under_its_key(client: OpenAI, served: Any) -> None:
    long = {"num_samples": 32, "num_inference_steps": 100}  # 2 s of the fake engine
    patient, short = client.with_options(max_retries=100), {"Prefer": "wait=1"}
    with pytest.raises(openai.InternalServerError, match="it goes on at http://") as caught:
        patient.images.generate(prompt="p", extra_body=long, extra_headers=short)
    assert (caught.value.status_code, caught.value.request.headers["x-stainless-retry-count"]) == (504, "0")
    httpx.delete(caught.value.response.headers["location"], timeout=PATIENCE)
    answer = patient.images.with_raw_response.generate(
        prompt="p", extra_body=long, extra_headers=short | {"Idempotency-Key": "long"}
    )
    assert answer.headers["idempotent-replayed"] == "true"
    assert answer.parse().num_samples == 32


def test_keys(served: Any, serving: Serving, keys: Any) -> None:
    with serving(served.settings.model_copy(update=keys("k1"))) as api:

        def call(key: str) -> Any:
            with OpenAI(base_url=f"{api.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE) as client:
                return client.models.list()

        assert call("k1").data
        with pytest.raises(openai.AuthenticationError, match="not one of this server's") as caught:
            call("k2")
        assert (caught.value.type, caught.value.code) == ("authentication_error", "not_authorized")


def test_a_full_queue_is_tried_again_when_it_says(idle: Settings, serving: Serving) -> None:
    async def call(url: str, retries: int) -> str:
        async with openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="none", max_retries=retries, timeout=PATIENCE
        ) as client:
            with pytest.raises(openai.RateLimitError, match="candidates wait") as caught:
                await client.images.generate(prompt="p", quality="high")
            assert float(caught.value.response.headers["retry-after-ms"]) >= 1000
            return str(caught.value.request.headers["x-stainless-retry-count"])

    with serving(idle.model_copy(update={"max_queued_candidates": 40})) as full:
        body, later = {"prompt": "p", "num_samples": 20}, {"Prefer": "respond-async"}
        assert httpx.post(f"{full.url}/generate", json=body, headers=later, timeout=PATIENCE).status_code == 202
        assert asyncio.run(call(full.url, 0)) == "0"
        started = time.monotonic()
        assert asyncio.run(call(full.url, 1)) == "1"
        assert time.monotonic() - started > 0.95  # left to itself, it would have waited half a second at most


def test_models(client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("fake", "model", "bestofn")
    assert abs(model.created - time.time()) < 3600
    shown = model.model_dump()
    assert (shown["width"], shown["judges"], shown["workers"]) == (64, [{"name": "fake-judge", "revision": "1"}], 1)
    assert client.models.retrieve("fake") == model


def test_of_two_revisions_the_one_that_came_up_last_is_shown() -> None:
    def info(name: str, revision: str, started_at: float) -> WorkerInfo:
        engine = FakeEngine(name=name, revision=revision)
        revisions = {"model": engine.model_info, "judge": engine.judge_info, "started_at": started_at}
        return WorkerInfo(worker=f"{name}{revision}", host="h", pid=1, device="cpu", capacity=4, **revisions)

    old, new, away = info("a", "1", 1.0), info("a", "2", 2.0), info("lab/b", "1", 3.0)
    shown = models_of([old, new], [old, new, away])
    assert [(m.id, m.revision, m.created, m.workers, m.owned_by) for m in shown] == [
        ("a", "2", 2, 2, "bestofn"),
        ("lab/b", "1", 3, 0, "lab"),
    ]
    assert [judge.revision for judge in shown[0].judges] == ["2"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"num_samples": 16}),
        ({"quality": "low", "n": 8}, {"num_samples": 8, "top_k": 8}),
        ({"quality": "max"}, {"num_samples": 100}),
        ({"quality": "high", "num_samples": 5}, {"num_samples": 5}),
        ({"size": "64x32", "format": "webp"}, {"num_samples": 16, "width": 64, "height": 32, "format": "webp"}),
        ({"background": "opaque", "moderation": "low", "stream": False, "style": "vivid"}, {"num_samples": 16}),
    ],
)
def test_openai_request_means_these_fields(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    asked = ImagesRequest(prompt="p", **fields).generate_request(max_samples=100)
    assert asked.model_dump(exclude_unset=True) == {"prompt": "p"} | expected
