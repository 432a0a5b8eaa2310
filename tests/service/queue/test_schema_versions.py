"""Several versions at one queue: each worker runs the jobs of its own, and no job is lost or waits for good."""

import hashlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import get_args

import pytest
from pydantic import BaseModel

from bestofn.service.api.deployments import Deployed
from bestofn.service.core import jobs
from bestofn.service.core.errors import Unavailable
from bestofn.service.core.jobs import Heat, HeatOutcome, JobSpec, JobStatus
from bestofn.service.core.settings import Settings
from bestofn.service.core.workers import WorkerInfo
from bestofn.service.queue import leftovers
from bestofn.service.queue.consumer import QueueConsumer
from bestofn.service.queue.job_queue import Queue
from bestofn.service.queue.leftovers import sweep

MakeSpec = Callable[..., JobSpec]
OpenLane = Callable[..., Awaitable[QueueConsumer]]
Finish = Callable[[Heat], HeatOutcome]
NEXT = jobs.SCHEMA_VERSION + 1

# Fields, types and defaults of what is stored. A change of it needs a new SCHEMA_VERSION and a new line here.
FORMS = {
    1: "eef6c12655bcf1c9",
    2: "44fd8891233d86ce",
    3: "b01bb6066431dd85",
    4: "d3a8745e5d95cbfd",
    5: "5b8f0fe84e3588d0",
    6: "dc6cdf4fbbed49e8",
}


def form_of(model: type[BaseModel]) -> dict[str, str]:
    """Name, type and default of each field, with those of the models that it holds."""
    form = {}
    for name, field in model.model_fields.items():
        said = f"{field.annotation} {'' if field.is_required() else field.default!r}"
        said = re.sub(r"\b(bestofn\.[\w.]+|typing)\.", "", said)  # a type that moves is no change
        form[name] = re.sub(r"^(Annotated\[.*\]) \| None", r"Optional[\1]", said)  # as Python before 3.14 writes it
        for held in (field.annotation, *get_args(field.annotation)):
            if isinstance(held, type) and issubclass(held, BaseModel) and held is not model:
                form |= {f"{name}.{inner}": text for inner, text in form_of(held).items()}
    return form


def test_schema_version_changes_with_the_stored_form() -> None:
    forms = [form_of(model) for model in (JobSpec, WorkerInfo)]
    digest = hashlib.sha256(json.dumps(forms, sort_keys=True).encode()).hexdigest()[:16]
    assert FORMS.get(jobs.SCHEMA_VERSION) == digest, f"raise SCHEMA_VERSION and record the new form {digest}"


@contextmanager
def version(number: int) -> Iterator[None]:
    """Code of another version: what it makes in this block has its number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "SCHEMA_VERSION", number)
        yield


@pytest.fixture
async def queue(settings: Settings) -> AsyncIterator[Queue]:
    async with aclosing(await Queue.connect(settings)) as opened:
        yield opened


async def test_jobs_of_an_old_version_are_finished_by_old_workers_alone(
    queue: Queue, make_spec: MakeSpec, open_lane: OpenLane, finish: Finish
) -> None:
    old = await open_lane(queue, "old")
    before = make_spec(num_samples=4)
    await queue.submit(before, cost=1.0)
    with version(NEXT):
        new = await open_lane(queue, "new")
        after = make_spec(num_samples=4)
        await queue.submit(after, cost=1.0)
        assert [info.worker for info in await queue.workers()] == ["new"]
        (claim,) = await new.claim(8, 0)
        assert claim.entry.job == after.id
        assert (await queue.record(before.id)).status is JobStatus.QUEUED
    (claim,) = await old.claim(8, 0)
    assert claim.entry.job == before.id
    await old.complete(claim, finish(claim.heat))
    with version(NEXT):
        assert (await queue.record(before.id)).status is JobStatus.SUCCEEDED


async def test_jobs_of_a_version_that_is_gone_fail_with_a_reason(
    queue: Queue, make_spec: MakeSpec, open_lane: OpenLane, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await open_lane(queue, "old")
    queued, running = make_spec(num_samples=4), make_spec(num_samples=8)
    for spec in (running, queued):
        await queue.submit(spec, cost=1.0)
    await old.claim(1, 0)
    with version(NEXT):
        await open_lane(queue, "new")
        own = make_spec(num_samples=4)
        await queue.submit(own, cost=1.0)
        assert await sweep(queue) == []  # its worker lives
        await old.heartbeat((), 0)
        assert await sweep(queue) == []  # it may come back
        monkeypatch.setattr(leftovers, "ORPHAN_SECONDS", 0.0)
        assert set(await sweep(queue)) == {queued.id, running.id}
        for spec in (queued, running):
            record = await queue.record(spec.id)
            assert record.status is JobStatus.FAILED
            assert str(record.error).startswith(
                f"the job was accepted by another version of bestofn (stored form {NEXT - 1}, here {NEXT})"
            )
        assert (await queue.record(own.id)).status is JobStatus.QUEUED
        backlog = await queue.backlog()
        assert (backlog.jobs, backlog.candidates) == (1, 4)


async def test_a_request_while_only_another_version_is_live_says_so(queue: Queue, open_lane: OpenLane) -> None:
    await open_lane(queue, "old")
    with version(NEXT), pytest.raises(Unavailable, match=r"the workers run another version of bestofn, .* update them"):
        await Deployed(queue).choose(None, None)
