"""A job on a server, followed from here."""

from collections.abc import Mapping
from typing import Any

from bestofn.service.cli.outcome import Outcome
from bestofn.service.cli.progress import JobBar
from bestofn.service.client import Client
from bestofn.service.errors import JobCanceled, JobFailed
from bestofn.service.jobs import JobStatus
from bestofn.service.settings import Settings


def generate(request: Mapping[str, Any], server: str, settings: Settings) -> Outcome:
    """Submit, follow and fetch. A job that is interrupted here is cancelled there.

    Raises:
        BestOfNError: what the server refused, or how the job ended if it did not succeed.
    """
    with Client(server, settings.api_key) as client:
        job = client.submit(request)
        try:
            with JobBar() as bar:
                result = client.wait(job.id, bar.show)
        except BaseException:
            client.cancel(job.id)
            raise
        if result.status is JobStatus.FAILED:
            raise JobFailed(f"job {job.id} failed: {result.error}")
        if result.status is JobStatus.CANCELED:
            raise JobCanceled(f"job {job.id} was cancelled")
        images = [client.image(job.id, image.rank) for image in result.images]
        shown = [candidate.index for candidate in result.candidates if candidate.thumbnail is not None]
        return Outcome(result, images, {index: client.thumbnail(job.id, index) for index in shown})
