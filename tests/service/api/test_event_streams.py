"""Job events: what is told of stored ones, and the stream over a real queue, worker and socket."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bestofn.judge.bracket import knockout
from bestofn.service.api.event_translation import EventTranslator, StreamEvent, place_of
from bestofn.service.api.routes.events import TRANSLATED_AT_ONCE, catch_up
from bestofn.service.core.jobs import Candidate, HeatOutcome, JobSpec, Revision, Usage
from bestofn.service.core.results import ranked
from bestofn.service.core.settings import Settings
from bestofn.service.engine.fake import FAILS, fake_verdict
from bestofn.service.queue.codec import Event, pack_candidate
from bestofn.service.queue.consumer import QueueConsumer
from bestofn.service.queue.job_queue import Queue
from tests.waiting import PATIENCE

EVENTS = {"Accept": "text/event-stream"}


def read(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    """The events of a stream as dictionaries of their fields, data decoded; comments are passed over."""
    fields: dict[str, Any] = {}
    for line in answer.iter_lines():
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            fields[name] = json.loads(value) if name == "data" else value
        elif fields:
            yield fields
            fields = {}


def translated(events: list[dict[str, Any]], kind: str) -> list[Any]:
    return [event["data"] for event in events if event["event"] == kind]


@pytest.fixture
def http(served: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=PATIENCE) as client:
        yield client


def test_event_stream_follows_a_job_from_the_queue_to_its_result(http: httpx.Client) -> None:
    request = {"prompt": "a red star", "num_samples": 21, "top_k": 2, "seed": 5, "thumbnails": True}
    seen_first: list[int] = []
    with http.stream("POST", "/generate", json=request, headers=EVENTS) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = []
        for event in read(answer):
            events.append(event)
            if event["event"] == "candidate" and not seen_first:
                seen_first.append(http.get(event["data"]["thumbnail"]).status_code)
    kinds = [event["event"] for event in events]
    assert (kinds[0], kinds[-1]) == ("queued", "result")
    assert kinds.index("started") < kinds.index("candidate") < kinds.index("match")
    queued = translated(events, "queued")[0]
    assert queued.keys() == {"job", "position", "estimated_wait_seconds"}
    assert answer.headers["location"] == f"/jobs/{queued['job']}"
    candidates = translated(events, "candidate")
    assert sorted(candidate["index"] for candidate in candidates) == list(range(21))
    assert all(candidate["seed"] == 5 + candidate["index"] for candidate in candidates)
    assert seen_first == [200]
    [result] = translated(events, "result")
    assert result == http.get(answer.headers["location"]).json()
    matches = sorted(translated(events, "match"), key=lambda match: (match["round"], match["place"]))
    assert [match | {"round": None} for match in matches] == [
        {"round": None, "place": place, **match} for round in result["bracket"] for place, match in enumerate(round)
    ]
    last = translated(events, "progress")[-1]
    assert (last["judged"], last["transformer_forwards"]) == (21, 21 * 4 * 2)
    assert last["best"]["index"] == result["images"][0]["candidate"]


def test_a_stream_is_resumed_anywhere_without_gap_or_repetition(http: httpx.Client) -> None:
    job = http.post("/generate", json={"prompt": "a ring", "num_samples": 7}).json()["id"]
    url = f"/jobs/{job}/events"
    with http.stream("GET", url) as answer:
        whole = list(read(answer))
    assert len({event["id"] for event in whole}) == len(whole)
    for place, event in enumerate(whole):
        with http.stream("GET", url, headers={"Last-Event-ID": event["id"]}) as answer:
            assert list(read(answer)) == whole[place + 1 :]
    with http.stream("GET", url, headers={"Last-Event-ID": "none of ours"}) as answer:
        assert list(read(answer)) == whole


def test_a_stream_that_has_lost_events_starts_with_a_snapshot(http: httpx.Client) -> None:
    """The stream is capped at about a thousand events."""
    request = {"prompt": "a heart", "num_samples": 1500, "num_inference_steps": 1}
    job = http.post("/generate", json=request, headers={"Prefer": "wait=120"}).json()
    assert job["status"] == "succeeded"
    with http.stream("GET", f"/jobs/{job['id']}/events", headers={"Last-Event-ID": "1-0.0"}) as answer:
        events = list(read(answer))
    assert [event["event"] for event in events[:2]] == ["snapshot", "match"]
    assert events[0]["data"] == http.get(f"/jobs/{job['id']}").json()
    matches = [(match["round"], match["place"]) for match in translated(events, "match")]
    assert len(matches) == len(set(matches)) == sum(map(len, knockout(range(1500), range(1500)).rounds))
    assert events[-1]["event"] == "result"


def test_failure_and_cancel_end_a_stream_with_a_problem(http: httpx.Client) -> None:
    with http.stream("POST", "/generate", json={"prompt": FAILS, "num_samples": 2}, headers=EVENTS) as answer:
        *_, last = read(answer)
    assert (last["event"], last["data"]["code"], last["data"]["status"]) == ("problem", "job_failed", 500)
    assert last["data"]["job"] in answer.headers["location"]
    long = {"prompt": "a star", "num_samples": 4096, "num_inference_steps": 100}
    with http.stream("POST", "/generate", json=long, headers=EVENTS) as answer:
        events = read(answer)
        assert next(events)["event"] == "queued"
        assert http.delete(answer.headers["location"]).json()["status"] == "canceled"
        *_, last = events
    assert (last["event"], last["data"]["code"]) == ("problem", "job_canceled")


def test_refusals_come_before_the_stream(http: httpx.Client) -> None:
    answer = http.post("/generate", json={"prompt": "p", "num_samples": 0}, headers=EVENTS)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert http.post("/generate", content="{}", headers=EVENTS).status_code == 415
    assert http.get("/jobs/abc/events").status_code == 404


def test_a_result_that_expires_under_its_reader_ends_the_stream_with_a_problem(
    settings: Settings,
    make_spec: Callable[..., JobSpec],
    open_lane: Callable[..., Awaitable[QueueConsumer]],
    serving: Callable[[Settings], AbstractContextManager[Any]],
) -> None:
    spec = make_spec()

    async def submit() -> None:
        queue = await Queue.connect(settings)
        await open_lane(queue)
        await queue.submit(spec, cost=1.0)
        await queue.aclose()

    async def expire() -> None:
        queue = await Queue.connect(settings)
        async with queue.redis.pipeline(transaction=True) as pipe:  # its end, and nothing left when it is read
            pipe.xadd(queue.keys("events", spec.id), {"type": "canceled", "data": "{}"})
            pipe.delete(queue.keys("job", spec.id))
            pipe.set(queue.keys("tombstone", spec.id), "canceled ")
            await pipe.execute()
        await queue.aclose()

    asyncio.run(submit())
    with (
        serving(settings) as served,
        httpx.stream("GET", f"{served.url}/jobs/{spec.id}/events", timeout=PATIENCE) as answer,
    ):
        events = read(answer)
        assert next(events)["event"] == "queued"
        asyncio.run(expire())
        [last] = [event for event in events if event["event"] != "queued"]
    assert (last["event"], last["data"]["code"], last["data"]["status"]) == ("problem", "job_gone", 410)
    assert last["data"]["job"] == spec.id


@pytest.mark.parametrize("cancels", [True, False])
def test_hanging_up_cancels_only_for_those_who_asked(http: httpx.Client, cancels: bool) -> None:
    headers = EVENTS | ({"Prefer": "cancel-on-disconnect"} if cancels else {})
    long = {"prompt": "a star", "num_samples": 4096, "num_inference_steps": 100}
    with http.stream("POST", "/generate", json=long, headers=headers) as answer:
        job = answer.headers["location"]
        next(read(answer))
    deadline = time.monotonic() + (PATIENCE if cancels else 0.5)
    while (status := http.get(job).json()["status"]) != "canceled" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (status == "canceled") == cancels
    http.delete(job)


@given(data=st.data(), N=st.integers(1, 9))
def test_event_stream_of_any_stored_job_has_the_bracket_and_the_best(data: st.DataObject, N: int) -> None:
    revision = Revision(name="m", revision="1")
    spec = JobSpec(
        id="a",
        prompt="p",
        num_samples=N,
        seed=3,
        width=32,
        height=32,
        num_inference_steps=1,
        guidance_scale=1,
        heat_size=4,
        model=revision,
        judge=revision,
    )
    candidates = [Candidate(index, 3 + index, fake_verdict("p", index)) for index in range(N)]
    order = data.draw(st.permutations(candidates).flatmap(lambda c: st.just([*c, *c[: N // 2]])))  # some come twice
    translator, seen = EventTranslator(spec), list[StreamEvent]()
    for number, candidate in enumerate(order):
        seen += translator.translate(Event(f"{number}-0", "candidate", json.loads(pack_candidate(candidate))))
        seen += translator.translate(Event(f"{number}-1", "progress", {"judged": number}))
    places = [place_of(event.id) for event in seen]
    assert places == sorted(places, key=lambda place: place or ())
    assert len(set(places)) == len(places)
    assert sorted(event.data["index"] for event in seen if event.type == "candidate") == list(range(N))
    assert seen[-1].data["best"]["index"] == ranked(spec, candidates)[0].index
    bracket = knockout(range(N), [candidate.index for candidate in ranked(spec, candidates)])
    assert sum(event.type == "match" for event in seen) == sum(map(len, bracket.rounds))


def test_a_reader_too_slow_for_the_stream_is_noticed(make_spec: Callable[..., JobSpec]) -> None:
    spec = make_spec(num_samples=8, heat_size=4)
    translator = EventTranslator(spec)
    for index in (0, 1, 3):
        candidate = Candidate(index, 7 + index, fake_verdict("p", index))
        list(translator.translate(Event(f"{index}-0", "candidate", json.loads(pack_candidate(candidate)))))
    done = Event("9-0", "heat", {"heat": 0, "num_heats": 2})
    assert translator.missed(done)
    list(
        translator.translate(
            Event("9-1", "candidate", {"index": 2, "seed": 9, "verdict": fake_verdict("p", 2).to_json()})
        )
    )
    assert not translator.missed(done)


async def test_the_event_loop_goes_on_while_a_reader_of_a_large_job_catches_up(
    make_spec: Callable[..., JobSpec],
) -> None:
    spec = make_spec(num_samples=64, heat_size=64)
    candidates = tuple(Candidate(index, 7 + index, fake_verdict("p", index)) for index in range(64))
    outcome = HeatOutcome(heat=0, candidates=candidates, images={}, usage=Usage(candidates=64))
    turns = 0

    async def another_caller() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(another_caller())
    matches = await catch_up(EventTranslator(spec), [outcome])
    other.cancel()
    assert len(matches) == 63
    assert turns >= 64 // TRANSLATED_AT_ONCE
