"""Stored text that cannot be read: its job fails with a reason, and every other job goes on."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest

from bestofn.service.core.errors import JobUnreadable
from bestofn.service.core.jobs import Heat, HeatOutcome, JobSpec, JobStatus
from bestofn.service.core.settings import Settings
from bestofn.service.engine.fake import FakeEngine
from bestofn.service.queue.claims import Claim, HeatProgress
from bestofn.service.queue.codec import pack_leaders, read_spec, unpack_leaders
from bestofn.service.queue.consumer import QueueConsumer
from bestofn.service.queue.job_queue import Queue
from bestofn.service.queue.stats import ended_jobs, read_stats
from bestofn.service.telemetry.metrics import HEATS
from tests.service.queue.opening import opened
from tests.waiting import PATIENCE, events_of

MakeSpec = Callable[..., JobSpec]
Finish = Callable[[Heat], HeatOutcome]
OpenLane = Callable[..., Awaitable[QueueConsumer]]
Serving = Callable[[Settings], AbstractContextManager[Any]]
REASON = r"^the job's stored form cannot be read by this version \(.+\)$"
TEXTS = (b"", b"{", b"\xff\x00", b'{"id": "another version"}', b"null")


async def drain(lane: QueueConsumer, finish: Finish) -> list[Claim]:
    """Claims and completes all there is."""
    done = []
    while claims := await lane.claim(1, 0):
        for claim in claims:
            await lane.complete(claim, finish(claim.heat))
            done.append(claim)
    return done


async def write(queue: Queue, job: JobSpec, field: str, text: bytes) -> None:
    await queue.redis.hset(queue.keys("job", job.id), field, text)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("stop", [None, {"confidence": 0.999}])
async def test_an_unreadable_job_fails_when_all_workers_have_refused_it_and_others_go_on(
    settings: Settings, make_spec: MakeSpec, finish: Finish, open_lane: OpenLane, text: bytes, stop: object
) -> None:
    async with opened(settings) as queue:
        lane = await open_lane(queue, capacity=16)
        bad, good = make_spec(num_samples=8, stop=stop), make_spec()
        for spec in (bad, good):
            await queue.submit(spec, cost=1)
        await write(queue, bad, "spec", text)
        assert {claim.entry.job for claim in await drain(lane, finish)} == {good.id}
        assert (await queue.record(good.id)).status is JobStatus.SUCCEEDED
        with pytest.raises(JobUnreadable, match=REASON) as caught:
            await queue.record(bad.id)
        assert caught.value.job_status == JobStatus.FAILED
        assert caught.value.job_error == caught.value.detail
        letters = [fields async for fields in _letters(queue)]
        assert {fields[b"job"].decode() for fields in letters} == {bad.id}
        assert {int(fields[b"deliveries"]) for fields in letters} == {1}
        assert [event.type async for event in events_of(queue, bad.id)][-1] == "failed"
        assert (await queue.backlog()).candidates == 0


async def test_a_worker_that_cannot_read_a_heat_leaves_it_to_one_that_can(
    settings: Settings, make_spec: MakeSpec, finish: Finish, open_lane: OpenLane
) -> None:
    async with opened(settings) as queue:
        old, new = await open_lane(queue, "old"), await open_lane(queue, "new")
        spec = make_spec(num_samples=4)
        await queue.submit(spec, cost=1)
        text = await queue.redis.hget(queue.keys("job", spec.id), "spec")
        await write(queue, spec, "spec", b"{")
        counted = {outcome: HEATS.labels(outcome)._value.get() for outcome in ("retried", "dead_lettered")}
        assert await old.claim(1, 0) == []
        for _ in range(settings.max_deliveries + 1):  # its own lease lapses again and again: no delivery is spent
            assert await old.reclaim(0) == await old.claim(1, 0) == []
        await write(queue, spec, "spec", text)
        [claim] = await new.reclaim(0)
        assert claim.deliveries == 2
        await write(queue, spec, "spec", b"{")
        await new.give_back(claim, "released")
        assert await new.claim(1, 0) == []  # now all have refused it
        assert await queue.redis.hget(queue.keys("job", spec.id), "status") == b"failed"
        assert [HEATS.labels(name)._value.get() - before for name, before in counted.items()] == [1, 1]


NUMBERS = ("heats", "next", "done", "waiting", "gflop", "version", "decided", "judged", "total_steps", "first_heats")


@pytest.mark.parametrize("text", ["x", "", "1.5", "9" * 30])
@pytest.mark.parametrize("call", ["complete", "report"])
async def test_fields_that_scripts_cannot_count_with_fail_their_job(
    settings: Settings, make_spec: MakeSpec, finish: Finish, open_lane: OpenLane, call: str, text: str
) -> None:
    async with opened(settings) as queue:
        lane = await open_lane(queue)
        for field in NUMBERS:
            bad = make_spec(num_samples=4, stop={"confidence": 0.999} if field == "decided" else None)
            await queue.submit(bad, cost=1)
            [claim] = await lane.claim(1, 0)
            await write(queue, bad, field, text.encode())
            if call == "report":
                assert not await lane.report(bad.id, [HeatProgress(0, 1, 1, 1)])
            elif field in ("decided", "done") and text != "9" * 30 and text:
                with pytest.raises(JobUnreadable, match=r"^the job's stored record"):
                    await lane.complete(claim, finish(claim.heat))
                await lane.give_back(claim, "dead_lettered", "it cannot be read")
            else:
                assert not await lane.complete(claim, finish(claim.heat))
            assert await queue.redis.hget(queue.keys("job", bad.id), "status") == b"failed", field
        good = make_spec()
        await queue.submit(good, cost=1)
        await drain(lane, finish)
        assert (await queue.record(good.id)).status is JobStatus.SUCCEEDED


async def test_follower_of_a_job_without_a_readable_status_gets_the_reason(
    settings: Settings, make_spec: MakeSpec, open_lane: OpenLane
) -> None:
    async with opened(settings) as queue:
        await open_lane(queue)
        spec = make_spec()
        await queue.submit(spec, cost=1)
        await write(queue, spec, "status", b"\xff?")
        with pytest.raises(JobUnreadable, match=r"^the job's stored status cannot be read"):
            [event async for event in events_of(queue, spec.id)]


async def _letters(queue: Queue) -> AsyncIterator[dict[bytes, bytes]]:
    for _, fields in await queue.redis.xrange(queue.keys("dead_letters")):
        yield fields


@pytest.mark.parametrize("stop", [None, {"confidence": 0.999}])
async def test_an_entry_that_cannot_be_read_fails_its_job(
    settings: Settings, make_spec: MakeSpec, finish: Finish, open_lane: OpenLane, stop: object
) -> None:
    async with opened(settings) as queue:
        lane = await open_lane(queue)
        ready = queue.keys("ready", lane.pair, "interactive")
        await queue.redis.xadd(ready, {"nothing": "known"})
        bad, good = make_spec(stop=stop), make_spec()
        await queue.submit(bad, cost=1)
        await queue.redis.xadd(ready, {"job": bad.id, "heat": "x", "count": "", "deliveries": "y"})
        while await lane.claim(1, 0):
            pass
        record = await queue.record(bad.id)
        assert record.status is JobStatus.FAILED
        assert record.error == "an entry of the job cannot be read by this version (ValueError)"
        await lane.leave(())
        await lane.heartbeat((), 3600)
        await queue.submit(good, cost=1)
        await drain(lane, finish)
        assert (await queue.record(good.id)).status is JobStatus.SUCCEEDED


async def test_a_job_whose_heats_are_unknown_does_not_stop_the_dispatch(
    settings: Settings, make_spec: MakeSpec, finish: Finish, open_lane: OpenLane
) -> None:
    async with opened(settings) as queue:
        lane = await open_lane(queue)
        first, bad, good = make_spec(), make_spec(), make_spec()
        for spec in (first, bad, good):
            await queue.submit(spec, cost=1)
        await queue.redis.hdel(queue.keys("job", bad.id), "first_heats", "gflop", "leaders", "thumbnail_bytes")
        await drain(lane, finish)
        assert (await queue.record(good.id)).status is JobStatus.SUCCEEDED
        assert await queue.redis.hget(queue.keys("job", bad.id), "status") == b"failed"


async def test_unreadable_workers_and_ended_jobs_are_left_out(
    settings: Settings, make_spec: MakeSpec, finish: Finish, open_lane: OpenLane
) -> None:
    async with opened(settings) as queue:
        lane = await open_lane(queue)
        await open_lane(queue, "other")
        await queue.redis.hset(queue.keys("infos", lane.pair), "other", '{"worker": "other"}')
        await queue.redis.hset(queue.keys("pairs"), "another", "{")
        assert [info.worker for info in await queue.workers()] == ["one"]
        assert len(await queue.announced()) == 1
        await queue.redis.xadd(queue.keys("ended"), {"status": "succeeded", "leaders": "["})
        await queue.submit(make_spec(), cost=1)
        await drain(lane, finish)
        assert [job.status for job in (await ended_jobs(queue, "0-0"))[0]] == [JobStatus.SUCCEEDED]
        assert len((await read_stats(queue)).workers) == 1


async def test_unreadable_results_leave_the_end_of_the_job_readable(
    settings: Settings, make_spec: MakeSpec, finish: Finish, open_lane: OpenLane
) -> None:
    async with opened(settings) as queue:
        lane = await open_lane(queue)
        spec = make_spec()
        await queue.submit(spec, cost=1)
        await drain(lane, finish)
        await queue.redis.hset(queue.keys("heats", spec.id), "0", '{"first": 0}')
        with pytest.raises(JobUnreadable, match=r"^a stored result of the job") as caught:
            await queue.record(spec.id)
        assert caught.value.job_status == JobStatus.SUCCEEDED
        assert unpack_leaders(spec, pack_leaders([])) == []
        for text in ("", "{", "[1]", "[[0]]", "3"):
            with pytest.raises(JobUnreadable, match=r"^the stored leaders"):
                unpack_leaders(spec, text)


def test_the_reason_never_quotes_the_prompt(make_spec: MakeSpec) -> None:
    text = make_spec(prompt="a secret").model_dump_json().replace('"seed":7', '"seed":"a secret"')
    with pytest.raises(JobUnreadable) as caught:
        read_spec(text)
    assert caught.value.detail == "the job's stored form cannot be read by this version (seed: int_parsing)"


async def _answers(queue: Queue, url: str, job: JobSpec) -> dict[str, httpx.Response]:
    job_url = f"{url}/jobs/{job.id}"
    async with httpx.AsyncClient(timeout=PATIENCE) as http:
        return {
            "get": await http.get(job_url),
            "wait": await http.get(job_url, headers={"Prefer": "wait=0.1"}),
            "events": await http.get(f"{job_url}/events"),
            "image": await http.get(f"{job_url}/images/1"),
            "delete": await http.delete(job_url),
        }


async def test_the_routes_of_an_unreadable_job_answer(
    settings: Settings,
    make_spec: MakeSpec,
    finish: Finish,
    open_lane: OpenLane,
    serving: Callable[..., AbstractContextManager[Any]],
) -> None:
    async with opened(settings) as queue:
        lane = await open_lane(queue)
        dead, canceled, done = make_spec(), make_spec(), make_spec()
        await queue.submit(done, cost=1)
        await drain(lane, finish)
        await write(queue, done, "spec", b"{")
        await queue.submit(dead, cost=1)
        await write(queue, dead, "spec", b"{")
        await drain(lane, finish)
        await queue.submit(canceled, cost=1)
        await write(queue, canceled, "spec", b"{")
        with serving(settings) as served:
            found = {spec.id: await _answers(queue, served.url, spec) for spec in (dead, canceled, done)}
            async with httpx.AsyncClient(base_url=served.url, timeout=PATIENCE) as http:
                assert (await http.get("/status")).status_code == 200
        body = found[dead.id]["get"].json()
        assert (found[dead.id]["get"].status_code, body["status"]) == (200, "failed")
        assert body["error"].startswith("the job's stored form cannot be read")
        assert found[dead.id]["delete"].json()["status"] == "failed"
        assert found[canceled.id]["get"].json()["status"] == "queued"
        assert found[canceled.id]["wait"].json()["warnings"]
        assert found[canceled.id]["delete"].json()["status"] == "canceled"
        for answers in found.values():
            assert answers["events"].json()["code"] == "job_unreadable"
        assert found[dead.id]["image"].status_code == 404
        assert {answer.json()["code"] for answer in found[done.id].values()} == {"job_unreadable"}


async def test_a_caller_who_waits_gets_the_reason(
    settings: Settings, finish: Finish, open_lane: OpenLane, serving: Serving
) -> None:
    async with opened(settings) as queue, httpx.AsyncClient(timeout=PATIENCE) as http:
        lane = await open_lane(queue)
        await lane.store_tokenizers(FakeEngine().tokenizer_files)
        with serving(settings) as served:
            request = {"prompt": "a star", "num_samples": 4}
            waiting = asyncio.create_task(http.post(f"{served.url}/generate", json=request))
            while not (queued := await queue.redis.zrange(queue.keys("queued"), 0, 0)):
                await asyncio.sleep(0.02)
            await queue.redis.hset(queue.keys("job", queued[0].decode()), "spec", "{")
            await drain(lane, finish)
            answer = await waiting
        assert (answer.status_code, answer.json()["code"]) == (500, "job_failed")
        assert answer.headers["x-should-retry"] == "false"
        assert answer.json()["detail"].startswith("the job's stored form cannot be read")
