"""A client of the HTTP API: submit a job, follow it, fetch its pictures, cancel it."""

import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from bestofn.service.errors import BestOfNError, Unavailable
from bestofn.service.jobs import ENDED
from bestofn.service.schemas import JobResult

PAGE = 4096
POLL_SECONDS = 0.25
RETRIES = 4
LONGEST_RETRY_SECONDS = 30.0
_RETRIED = frozenset({429, 502, 503})


def _errors(root: type[BestOfNError]) -> dict[str, type[BestOfNError]]:
    found = {root.code: root}
    for kind in root.__subclasses__():
        found |= _errors(kind)
    return found


_BY_CODE = _errors(BestOfNError)


class Client:
    """A server's jobs. Use it as a context manager, or close it.

    Calls that the server refuses for lack of room or workers, or that do not reach it, are tried again after its
    Retry-After; everything else raises the error of `bestofn.service.errors` that the server named.
    """

    def __init__(
        self, server: str, api_key: str | None = None, *, timeout: float = 30.0, retries: int = RETRIES
    ) -> None:
        """`server` is its address, such as http://127.0.0.1:8000; `timeout` is of one call, in seconds."""
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self.server = server.rstrip("/")
        self._retries = retries
        try:
            self._http = httpx.Client(base_url=self.server, headers=headers, timeout=timeout)
        except httpx.InvalidURL as error:
            raise Unavailable(f"{server!r} is no address of a server: {error}") from error

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def ready(self) -> None:
        """Raises Unavailable, and says why, unless the server would serve a request now."""
        self._call("GET", "/readyz")

    def submit(self, request: Mapping[str, Any], *, idempotency_key: str | None = None) -> JobResult:
        """Submit a job with the fields of POST /generate and return at once. A lost answer does not draw it twice."""
        headers = {"Prefer": "respond-async", "Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return JobResult.model_validate_json(
            self._call("POST", "/generate", json=dict(request), headers=headers).content
        )

    def job(self, job_id: str) -> JobResult:
        """The job as it stands, with all candidates and the whole bracket."""
        result = self._page(f"/jobs/{job_id}?limit={PAGE}")
        following = result.next
        while following is not None:
            more = self._page(following)
            result.candidates += more.candidates
            for matches, others in zip(result.bracket, more.bracket, strict=True):
                matches += others
            following = more.next
        return result.model_copy(update={"next": None})

    def wait(
        self, job_id: str, on_progress: Callable[[JobResult], None] | None = None, *, poll: float = POLL_SECONDS
    ) -> JobResult:
        """Follow a job to its end, whichever end it is; `on_progress` gets its state every `poll` seconds."""
        while True:
            result = self._page(f"/jobs/{job_id}?limit=1")
            if on_progress is not None:
                on_progress(result)
            if result.status in ENDED:
                return self.job(job_id)
            time.sleep(poll)

    def image(self, job_id: str, rank: int = 1) -> bytes:
        """The picture of this rank, 1 is the best, in the job's format."""
        return self._call("GET", f"/jobs/{job_id}/images/{rank}").content

    def thumbnail(self, job_id: str, candidate: int) -> bytes:
        """A small WebP picture of any candidate of a job that was submitted with `thumbnails`."""
        return self._call("GET", f"/jobs/{job_id}/thumbnails/{candidate}").content

    def cancel(self, job_id: str) -> JobResult:
        """End a job; one that has ended stays as it is."""
        return JobResult.model_validate_json(self._call("DELETE", f"/jobs/{job_id}").content)

    def _page(self, path: str) -> JobResult:
        return JobResult.model_validate_json(self._call("GET", path).content)

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            try:
                response = self._http.request(method, path, **options)
            except httpx.UnsupportedProtocol as error:
                raise Unavailable(f"{self.server!r} is no address of a server: it starts with http://") from error
            except httpx.TransportError as error:
                if last:
                    raise Unavailable(f"{self.server} cannot be reached: {error}") from error
                time.sleep(0.2 * 2**attempt)
                continue
            if response.is_success:
                return response
            delay = _retry_after(response, 0.5 * 2**attempt)
            if last or response.status_code not in _RETRIED or delay > LONGEST_RETRY_SECONDS:
                raise _error_of(response)
            time.sleep(delay)
        raise AssertionError("the last attempt returns or raises")


def _retry_after(response: httpx.Response, default: float) -> float:
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, float(response.headers[name]) * unit)
        except (KeyError, ValueError):
            continue
    return default


def _error_of(response: httpx.Response) -> BestOfNError:
    try:
        body = response.json()
        kind, detail = _BY_CODE.get(body["code"], BestOfNError), str(body["detail"])
    except (ValueError, KeyError, TypeError):
        return BestOfNError(f"{response.request.url} answered {response.status_code}: is it a bestofn server?")
    return kind(detail, field=body.get("field"), retry_after=body.get("retry_after"))
