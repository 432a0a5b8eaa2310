"""The two clients of the HTTP API: `Client` blocks, `AsyncClient` awaits; both run the same flows."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import TypeVar, Unpack

import anyio.to_thread
import httpx

from bestofn.service.client.discovery import find_server
from bestofn.service.client.drivers import LIMITS, AsyncDriver, Driver
from bestofn.service.client.events import JobEvent, Progress
from bestofn.service.client.flows import Flows
from bestofn.service.client.generation import Generation
from bestofn.service.client.options import Options, RankOptions
from bestofn.service.client.rank_form import ImageSource, fields_of, files_of
from bestofn.service.core.errors import SetupError, Unavailable
from bestofn.service.core.openai_schemas import OpenAIModel
from bestofn.service.core.schemas import JobResult
from bestofn.service.core.settings import load_settings
from bestofn.service.host.loopback import uses_proxies

RETRIES = 4  # within about four seconds
RECONNECTS = 10  # within about a minute: a server that is being replaced
TIMEOUT_SECONDS = 30.0

OnProgress = Callable[[Progress], object]
OnProgressAsync = Callable[[Progress], Awaitable[object] | object]
_Http = TypeVar("_Http", httpx.Client, httpx.AsyncClient)


def _connect(
    kind: type[_Http], server: str | None, api_key: str | None, timeout: float, retries: int, reconnects: int
) -> tuple[_Http, Flows]:
    settings = load_settings(server=server, api_key=api_key)
    address = find_server(settings).rstrip("/")
    key = settings.api_key
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise SetupError("the API key, which may come from BESTOFN_API_KEY, holds white space or other than ASCII")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    proxies = settings.server is not None and uses_proxies(address)
    try:
        http = kind(base_url=address, headers=headers, timeout=timeout, limits=LIMITS, trust_env=proxies)
    except httpx.InvalidURL as error:
        raise Unavailable(f"{address!r} is not the address of a server: {error}") from error
    except (ImportError, ValueError) as error:
        raise SetupError(
            f"HTTP_PROXY, HTTPS_PROXY or ALL_PROXY cannot be used ({error}): correct or unset it"
        ) from error
    return http, Flows(address, retries, reconnects)


class Client:
    """Blocking client of a server. Close it, or use it as a context manager; several threads may share one.

    >>> import bestofn
    >>> with bestofn.Client() as client:
    ...     generation = client.generate("a photo of a red star left of a blue circle", num_samples=32)
    ...     generation.save("best.png")

    Lost requests, and refusals for lack of room or workers, are retried after the server's Retry-After. A retry never
    starts a second job. Other refusals raise the error of `bestofn.service.core.errors` that the server names.
    """

    def __init__(
        self,
        server: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = TIMEOUT_SECONDS,
        retries: int = RETRIES,
        reconnects: int = RECONNECTS,
    ) -> None:
        """
        Args:
            server: its address, such as http://127.0.0.1:8000; None: BESTOFN_SERVER, else a running `bestofn up`.
            api_key: None: BESTOFN_API_KEY, if that is set.
            timeout: seconds that one request may take.
            retries: how often a request is made again.
            reconnects: how often in a row the stream of a job that is followed may be lost.

        Raises:
            SetupError: no server is named and none is running, or the key or a proxy cannot be used.
        """
        http, self._flows = _connect(httpx.Client, server, api_key, timeout, retries, reconnects)
        self._driver = Driver(http)
        self.server = self._flows.server

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel the jobs that other threads draw, wait for these calls, and close the connections."""
        self._driver.close(self._flows.cancel_drawing())

    def generate(
        self,
        prompt: str,
        *,
        on_progress: OnProgress | None = None,
        idempotency_key: str | None = None,
        **options: Unpack[Options],
    ) -> Generation:
        """Draw candidates of a prompt, judge them, and return the best. Ctrl-C cancels the job on the server.

        >>> client.generate("two hearts", num_samples=64, seed=7, on_progress=lambda p: print(f"{p.fraction:.0%}"))

        Args:
            on_progress: is called with the job's `Progress` whenever it changes; what it raises cancels the job.
            idempotency_key: the same key and request again, from wherever, is the same job. Chosen if left out.
            options: `num_samples`, `top_k`, `seed`, `width`, ...: the fields of POST /generate.

        Raises:
            InvalidRequest: with the field at fault.
            JobFailed, JobCanceled, DeadlinePassed: how the job ended.
            Unavailable: the server cannot be reached, or has no worker; Overloaded: it has no room.
            ClientClosed: the client was closed, which has canceled the job.
        """
        return self._driver.run(self._flows.generate({"prompt": prompt, **options}, idempotency_key), on_progress)

    def rank(
        self,
        prompt: str,
        images: Sequence[ImageSource],
        *,
        on_progress: OnProgress | None = None,
        idempotency_key: str | None = None,
        **options: Unpack[RankOptions],
    ) -> JobResult:
        """Judge 2 to 64 images that exist; the job's `candidates` are these images, each with verdict and rank.

        >>> result = client.rank("two hearts", ["a.png", "b.png", "c.png"])
        >>> result.images[0].name, result.images[0].verdict.p_yes
        ('b.png', 0.943)

        Args:
            images: paths, bytes of files, or PIL images. Files are PNG, WebP or JPEG.
            on_progress, idempotency_key: as of `generate`.
            options: `top_k`, `judge`, `rule`, ...: the fields of POST /rank.

        Raises:
            OSError: a file cannot be read.
            InvalidRequest, JobFailed, JobCanceled, Unavailable, Overloaded, ClientClosed: as `generate`.
        """
        flow = self._flows.rank(fields_of(prompt, options), files_of(images), idempotency_key)
        return self._driver.run(flow, on_progress)

    def submit(self, prompt: str, *, idempotency_key: str | None = None, **options: Unpack[Options]) -> JobResult:
        """Queue a job and return at once; its `id` is what the other methods take. Arguments as of `generate`."""
        return self._driver.run(self._flows.submit({"prompt": prompt, **options}, idempotency_key))

    def wait(self, job_id: str, on_progress: OnProgress | None = None) -> Generation:
        """Follow a job to its end. An interruption leaves the job alone.

        Raises:
            JobFailed, JobCanceled, DeadlinePassed: how it ended.
        """
        return self._driver.run(self._flows.wait(job_id), on_progress)

    def events(self, job_id: str, after: str | None = None) -> Iterator[JobEvent]:
        """The job's events from the first on, or after the one with the id `after`, as they come, up to its last.

        >>> for event in client.events(job.id):
        ...     if event.type == "candidate":
        ...         print(event.index, event.verdict.p_yes)

        Lost connections and restarted servers leave neither gap nor repetition. Where the server no longer has all
        events, there is a `snapshot`: a reader starts afresh from its `result`. The types of all events are in
        `bestofn.service.client.events`.
        """
        return self._driver.iterate(self._flows.events(job_id, after))

    def result(self, job_id: str) -> JobResult:
        """The job at this moment, with all candidates and the whole bracket."""
        return self._driver.run(self._flows.result(job_id))

    def cancel(self, job_id: str) -> JobResult:
        """End a job; one that has ended stays as it is."""
        return self._driver.run(self._flows.cancel(job_id))

    def image(self, job_id: str, rank: int = 1) -> bytes:
        """The image of this rank, 1 is the best: a file's bytes in the job's format."""
        return self._driver.run(self._flows.image(job_id, rank))

    def thumbnail(self, job_id: str, candidate: int) -> bytes:
        """A small image, as WebP, of a candidate of a job that was submitted with `thumbnails`."""
        return self._driver.run(self._flows.thumbnail(job_id, candidate))

    def models(self) -> list[OpenAIModel]:
        """What the server deploys: names for `model`, each with its judges, sizes and defaults."""
        return self._driver.run(self._flows.models())

    def ready(self) -> None:
        """Raises Unavailable, and says why, unless the server would serve a request now."""
        self._driver.run(self._flows.ready())


class AsyncClient:
    """`Client`, awaited. A task that is cancelled in `generate` cancels its job on the server.

    >>> async with bestofn.AsyncClient() as client:
    ...     generation = await client.generate("a photo of a red star left of a blue circle", num_samples=32)

    Constructing it looks for a running `bestofn up` if no server is named, which may take a moment.
    """

    def __init__(
        self,
        server: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = TIMEOUT_SECONDS,
        retries: int = RETRIES,
        reconnects: int = RECONNECTS,
    ) -> None:
        """As `Client`."""
        http, self._flows = _connect(httpx.AsyncClient, server, api_key, timeout, retries, reconnects)
        self._driver = AsyncDriver(http)
        self.server = self._flows.server

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the calls that run, cancel the jobs that they draw, and close the connections.

        Such a call raises ClientClosed, or CancelledError in a task that was cancelled.
        """
        await self._driver.aclose()

    async def generate(
        self,
        prompt: str,
        *,
        on_progress: OnProgressAsync | None = None,
        idempotency_key: str | None = None,
        **options: Unpack[Options],
    ) -> Generation:
        """As `Client.generate`; `on_progress` may be a coroutine function."""
        return await self._driver.run(self._flows.generate({"prompt": prompt, **options}, idempotency_key), on_progress)

    async def rank(
        self,
        prompt: str,
        images: Sequence[ImageSource],
        *,
        on_progress: OnProgressAsync | None = None,
        idempotency_key: str | None = None,
        **options: Unpack[RankOptions],
    ) -> JobResult:
        """As `Client.rank`; files are read in a thread."""
        files = await anyio.to_thread.run_sync(files_of, images)
        return await self._driver.run(self._flows.rank(fields_of(prompt, options), files, idempotency_key), on_progress)

    async def submit(self, prompt: str, *, idempotency_key: str | None = None, **options: Unpack[Options]) -> JobResult:
        """As `Client.submit`."""
        return await self._driver.run(self._flows.submit({"prompt": prompt, **options}, idempotency_key))

    async def wait(self, job_id: str, on_progress: OnProgressAsync | None = None) -> Generation:
        """As `Client.wait`."""
        return await self._driver.run(self._flows.wait(job_id), on_progress)

    def events(self, job_id: str, after: str | None = None) -> AsyncIterator[JobEvent]:
        """As `Client.events`: `async for event in client.events(job.id)`."""
        return self._driver.iterate(self._flows.events(job_id, after))

    async def result(self, job_id: str) -> JobResult:
        """As `Client.result`."""
        return await self._driver.run(self._flows.result(job_id))

    async def cancel(self, job_id: str) -> JobResult:
        """As `Client.cancel`."""
        return await self._driver.run(self._flows.cancel(job_id))

    async def image(self, job_id: str, rank: int = 1) -> bytes:
        """As `Client.image`."""
        return await self._driver.run(self._flows.image(job_id, rank))

    async def thumbnail(self, job_id: str, candidate: int) -> bytes:
        """As `Client.thumbnail`."""
        return await self._driver.run(self._flows.thumbnail(job_id, candidate))

    async def models(self) -> list[OpenAIModel]:
        """As `Client.models`."""
        return await self._driver.run(self._flows.models())

    async def ready(self) -> None:
        """As `Client.ready`."""
        await self._driver.run(self._flows.ready())
