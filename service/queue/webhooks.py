"""Webhooks that are to be sent, in the queue: API processes claim them, and those of a dead process come back."""

from dataclasses import dataclass

from bestofn.service.core.jobs import JobStatus
from bestofn.service.queue.job_queue import Queue


@dataclass(frozen=True, slots=True)
class DueWebhook:
    """One attempt at the webhook of a job that has ended.

    Attributes:
        job: the job.
        url: the receiver.
        status: how the job has ended.
        ended: Unix time of its end.
        attempt: number of the attempt, from 1 on.
        body: what earlier attempts sent; b"": none was made, or its process died.
        age_seconds: time since the job's end.
    """

    job: str
    url: str
    status: JobStatus
    ended: float
    attempt: int
    body: bytes
    age_seconds: float


async def claim(queue: Queue, count: int, lease_seconds: float) -> list[DueWebhook]:
    """Claim at most `count` webhooks whose time has come.

    They come back unless they are settled within `lease_seconds`.
    """
    found = await queue.scripts("claim_webhooks", count=count, lease=int(1000 * lease_seconds))
    return [
        DueWebhook(
            job.decode(), url.decode(), JobStatus(status.decode()), ended / 1000, attempt, body, max(0, age) / 1000
        )
        for job, url, status, ended, attempt, body, age in found
    ]


async def settle(queue: Queue, webhook: DueWebhook, pause_seconds: float | None, body: bytes) -> None:
    """End an attempt. None: no further one; otherwise the next one comes after the pause, with the same body."""
    pause = "" if pause_seconds is None else int(1000 * pause_seconds)
    await queue.scripts("settle_webhook", job=webhook.job, attempt=webhook.attempt, pause=pause, body=body)
