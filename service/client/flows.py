"""What each of the client's methods does, as flows: which requests, in which order, and what is made of them."""

import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

import httpx
from pydantic import ValidationError

from bestofn.service.client.actions import Emit, Flow, Send, job_path
from bestofn.service.client.errors import ClientClosed
from bestofn.service.client.event_stream import Following
from bestofn.service.client.events import ProblemEvent, Progress, ResultEvent
from bestofn.service.client.generation import Generation
from bestofn.service.client.options import as_json
from bestofn.service.client.rank_form import Files
from bestofn.service.client.retries import call
from bestofn.service.core.errors import BestOfNError, InvalidRequest, JobCanceled
from bestofn.service.core.openai_schemas import ModelsOut, OpenAIModel
from bestofn.service.core.schemas import JobResult

PAGE = 4096
LAST_WISH_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Flows:
    """The flows of one server. Each raises the `bestofn.service.core.errors` that the server names.

    Attributes:
        drawing: ids of the jobs whose `generate` runs.

    Raises:
        Unavailable: the server cannot be reached.
    """

    server: str
    retries: int
    reconnects: int
    drawing: set[str] = field(default_factory=set)

    def generate(self, request: Mapping[str, Any], key: str | None) -> Flow[Generation]:
        """Submit, follow, fetch; emits Progress. Whatever interrupts it cancels the job."""
        result = yield from self._run(_submission(request, key))
        return (yield from self._fetch(result))

    def rank(self, fields: Mapping[str, str], files: Files, key: str | None) -> Flow[JobResult]:
        """Submit images and follow their job; emits Progress. Whatever interrupts it cancels the job."""
        return (yield from self._run(replace(_submission({}, key), path="/rank", json=None, data=fields, files=files)))

    def _run(self, submission: Send) -> Flow[JobResult]:
        """Submit a job and follow it to its end; emits Progress."""
        job: JobResult | None = None
        try:
            job = _job((yield from self._call(submission)))
            self.drawing.add(job.id)
            return (yield from self._follow(job))
        except BaseException as error:
            # After other errors of ours the job does not exist, has ended, or its server cannot be reached.
            if isinstance(error, ClientClosed) or not isinstance(error, BestOfNError):
                yield from self._abandon(submission, job)
            raise
        finally:
            if job is not None:
                self.drawing.discard(job.id)

    def cancel_drawing(self) -> Flow[None]:
        """Cancel the jobs whose `generate` runs, each tried once."""
        for job in tuple(self.drawing):
            with suppress(Exception):
                yield _last_wish(Send("DELETE", job_path(job)))

    def submit(self, request: Mapping[str, Any], key: str | None) -> Flow[JobResult]:
        """The job, once it is queued; an answer that got lost does not queue it twice."""
        return _job((yield from self._call(_submission(request, key))))

    def wait(self, job_id: str) -> Flow[Generation]:
        """Follow a job to its end and fetch its images; emits Progress.

        Raises:
            JobFailed, JobCanceled: how it ended.
        """
        result = yield from self._follow((yield from self._read(f"{job_path(job_id)}?limit=1")))
        return (yield from self._fetch(result))

    def _follow(self, job: JobResult) -> Flow[JobResult]:
        """The result of a job at its end; emits Progress."""
        progress = Progress.of(job)
        yield Emit(progress)
        stream = Following(self.server, job.id, None, self.reconnects)
        while (event := (yield from stream.next())) is not None:
            before, progress = progress, progress.after(event)
            if progress != before:
                yield Emit(progress)
            if isinstance(event, ProblemEvent):
                error = event.error
                canceled = isinstance(error, JobCanceled)
                raise type(error)(f"job {job.id} {'was cancelled' if canceled else f'failed: {error.detail}'}")
            if isinstance(event, ResultEvent):
                return event.result if event.result.next is None else (yield from self.result(job.id))
        raise AssertionError("a stream ends with a result or an error")

    def _fetch(self, result: JobResult) -> Flow[Generation]:
        images: list[bytes] = []
        for image in result.images:
            images += [(yield from self.image(result.id, image.rank))]
        return Generation.of(result, images)

    def events(self, job_id: str, after: str | None) -> Flow[None]:
        """Emits the job's events, each once."""
        stream = Following(self.server, job_id, after, self.reconnects)
        while (event := (yield from stream.next())) is not None:
            yield Emit(event)

    def result(self, job_id: str) -> Flow[JobResult]:
        """The job at this moment, with all candidates and the whole bracket."""
        result = yield from self._read(f"{job_path(job_id)}?limit={PAGE}")
        following = result.next
        while following is not None:
            page = urlsplit(following).query  # its address may be a public one, and this client knows another
            more = yield from self._read(f"{job_path(job_id)}?{page}")
            result.candidates += more.candidates
            for matches, others in zip(result.bracket, more.bracket, strict=True):
                matches += others
            following = more.next
        return result.model_copy(update={"next": None})

    def cancel(self, job_id: str) -> Flow[JobResult]:
        return _job((yield from self._call(Send("DELETE", job_path(job_id)))))

    def image(self, job_id: str, rank: int) -> Flow[bytes]:
        return (yield from self._call(Send("GET", f"{job_path(job_id)}/images/{rank}"))).content

    def thumbnail(self, job_id: str, candidate: int) -> Flow[bytes]:
        return (yield from self._call(Send("GET", f"{job_path(job_id)}/thumbnails/{candidate}"))).content

    def models(self) -> Flow[list[OpenAIModel]]:
        answer = yield from self._call(Send("GET", "/v1/models"))
        return ModelsOut.model_validate_json(answer.content).data

    def ready(self) -> Flow[None]:
        """Ask once, without retries: the caller wants the present state."""
        yield from call(Send("GET", "/readyz"), self.server, 0)

    def _call(self, action: Send) -> Flow[httpx.Response]:
        return call(action, self.server, self.retries)

    def _read(self, path: str) -> Flow[JobResult]:
        return _job((yield from self._call(Send("GET", path))))

    def _abandon(self, submission: Send, job: JobResult | None) -> Flow[None]:
        """Cancel the job of a caller who is being interrupted; one whose submission was not answered yet is asked
        for by its key. Tried once: what interrupts the caller matters more than what goes wrong here."""
        with suppress(Exception):
            if job is None:
                answer: httpx.Response = yield _last_wish(submission)
                if not answer.is_success:
                    return
                job = _job(answer)
            yield _last_wish(Send("DELETE", job_path(job.id)))


def _submission(request: Mapping[str, Any], key: str | None) -> Send:
    if key and not (key.isascii() and key.isprintable()):  # no header carries it
        raise InvalidRequest(f"Idempotency-Key {key[:40]!r} must be printable ASCII", field="Idempotency-Key")
    for name, value in request.items():
        as_json(name, value)
    headers = {"Prefer": "respond-async", "Idempotency-Key": key or uuid.uuid4().hex}
    return Send("POST", "/generate", headers, dict(request))


def _last_wish(action: Send) -> Send:
    return replace(action, timeout=LAST_WISH_SECONDS, shielded=True)


def _job(answer: httpx.Response) -> JobResult:
    try:
        return JobResult.model_validate_json(answer.content)
    except ValidationError as error:
        raise BestOfNError(f"{answer.request.url} does not answer with a job: is it a bestofn server?") from error
