"""Sending webhooks: each to an address that was checked, with bounded time, and again until it is answered 2xx.

Several API processes share the work. A webhook may arrive twice if a process dies after sending it; both have one id.
"""

import asyncio
import contextlib
import ipaddress
import json
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import httpx
import structlog
from redis.exceptions import RedisError

from bestofn.service.api.dependencies import Context
from bestofn.service.api.responses import result_of
from bestofn.service.core.errors import BestOfNError
from bestofn.service.core.version import VERSION
from bestofn.service.core.webhooks import AllowedHosts, headers_of, pause
from bestofn.service.queue import webhooks
from bestofn.service.queue.connection import end_tasks
from bestofn.service.queue.webhooks import DueWebhook
from bestofn.service.telemetry import metrics

POLL_SECONDS = 0.5
AT_ONCE = 32  # attempts of a process
ATTEMPT_SECONDS = 10.0  # from the look-up of the name to the status of the answer
LEASE_SECONDS = 30.0  # longer than an attempt
GONE = 410  # the receiver wants no more

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

log = structlog.get_logger()


class NotReached(Exception):
    """An attempt without an answer, and why."""


class WebhookSender:
    """Sends the webhooks of jobs that have ended, as one of several processes."""

    def __init__(self, context: Context, secret: str, resolve: Resolve | None = None) -> None:
        """`resolve` returns the addresses of a host's name for a port; the system's by default."""
        self._context = context
        self._secret = secret
        self._allowed = AllowedHosts(context.settings.webhook_hosts)
        self._resolvers = ThreadPoolExecutor(4, "webhooks")  # threads of its own: a slow look-up takes one
        self._resolve = resolve or self._look_up
        self._attempts: set[asyncio.Task[Any]] = set()

    async def run(self) -> None:
        """Send what is to be sent, until this is cancelled."""
        # No connection is used twice: another name may have the same address, and its certificate has to be checked.
        limits = httpx.Limits(max_keepalive_connections=0)
        certificates = httpx.create_ssl_context()
        try:
            async with httpx.AsyncClient(verify=certificates, trust_env=False, limits=limits) as client:
                while True:
                    found: list[DueWebhook] = []
                    if len(self._attempts) < AT_ONCE:
                        with contextlib.suppress(RedisError):
                            free = AT_ONCE - len(self._attempts)
                            found = await webhooks.claim(self._context.queue, free, LEASE_SECONDS)
                    for webhook in found:
                        task = asyncio.create_task(self._attempt(client, webhook))
                        self._attempts.add(task)
                        task.add_done_callback(self._done)
                    await asyncio.sleep(POLL_SECONDS)
        finally:
            if self._attempts:
                await end_tasks(set(self._attempts))
            self._resolvers.shutdown(wait=False, cancel_futures=True)

    async def send(
        self, client: httpx.AsyncClient, url: str, body: bytes, headers: Mapping[str, str]
    ) -> httpx.Response:
        """POST to an address without following redirects. The body of the answer is not read.

        The host's name is resolved once, and the connection is made to an address that was checked then.

        Raises:
            NotReached: no address of the host may be called, or none answers in time.
        """
        target = httpx.URL(url)
        host = target.raw_host.decode()
        port = target.port or (443 if target.scheme == "https" else 80)
        reason = "its name has no address"
        try:
            async with asyncio.timeout(ATTEMPT_SECONDS):
                for text in await self._resolve(host, port):
                    if not self._allowed.may_connect(host, ipaddress.ip_address(text)):
                        reason = "its name leads to an address that is not public"
                        continue
                    try:
                        return await _post(client, target, text, body, headers)
                    except httpx.HTTPError as error:
                        reason = f"{type(error).__name__}: {error}"
        except TimeoutError:
            reason = f"no answer within {ATTEMPT_SECONDS:g} s"
        except (OSError, ValueError) as error:  # the look-up failed
            reason = f"{type(error).__name__}: {error}"
        raise NotReached(reason)

    async def _attempt(self, client: httpx.AsyncClient, webhook: DueWebhook) -> None:
        body = webhook.body or await self._body(webhook)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"bestofn/{VERSION}",
            **headers_of(self._secret, f"msg_{webhook.job}", int(time.time()), body),
        }
        status, reason, answered = None, None, httpx.Headers()
        try:
            answer = await self.send(client, webhook.url, body, headers)
            status, answered = answer.status_code, answer.headers
        except NotReached as error:
            reason = str(error)
        delivered = status is not None and 200 <= status < 300
        again = None if delivered or status == GONE else pause(webhook.attempt, webhook.age_seconds, answered)
        outcome = "delivered" if delivered else "given_up" if again is None else "retried"
        metrics.WEBHOOKS.labels(outcome).inc()
        logged = {"status": status} if reason is None else {"reason": reason[:200]}
        write = log.warning if outcome == "given_up" else log.info
        write("webhook", job_id=webhook.job, attempt=webhook.attempt, outcome=outcome, **logged)
        await webhooks.settle(self._context.queue, webhook, again, body)

    async def _body(self, webhook: DueWebhook) -> bytes:
        """The event as JSON: the job without its prompt and its candidates, as long as it is kept."""
        data: dict[str, Any] = {"id": webhook.job, "status": webhook.status}
        with contextlib.suppress(BestOfNError):
            result = await result_of(self._context, webhook.job, limit=1)
            data |= result.model_dump(
                mode="json",
                include={"images", "usage", "complete", "stopped", "confidence", "warnings", "error", "model", "judge"},
            )
        data["url"] = f"{self._context.base}/jobs/{webhook.job}"
        ended = datetime.fromtimestamp(webhook.ended, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        event = {"type": f"job.{webhook.status}", "timestamp": ended, "data": data}
        return json.dumps(event, separators=(",", ":")).encode()

    async def _look_up(self, host: str, port: int) -> list[str]:
        look = asyncio.get_running_loop().run_in_executor
        found = await look(self._resolvers, lambda: socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM))
        return list(dict.fromkeys(str(place[0]) for *_, place in found))

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self._attempts.discard(task)
        if not task.cancelled() and task.exception() is not None:
            # The lease lapses, and another attempt follows.
            log.warning("an attempt at a webhook failed", error=str(task.exception()))


async def _post(
    client: httpx.AsyncClient, target: httpx.URL, address: str, body: bytes, headers: Mapping[str, str]
) -> httpx.Response:
    """POST to this address of the target's host, whose certificate must name the host."""
    request = client.build_request(
        "POST",
        target.copy_with(host=address),
        content=body,
        headers={**headers, "Host": target.netloc.decode()},
        extensions={"sni_hostname": target.raw_host.decode().strip("[]")},
        timeout=ATTEMPT_SECONDS,
    )
    answer = await client.send(request, stream=True, follow_redirects=False)
    await answer.aclose()
    return answer
