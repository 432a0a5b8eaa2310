"""Images that a caller sent with a job: stored with its submission, fetched by the workers that judge them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bestofn.service.core.errors import ImageNotFound, JobUnreadable, Unavailable
from bestofn.service.core.jobs import ACTIVE, Heat
from bestofn.service.queue.image_store import ImageNotStored, stage
from bestofn.service.queue.scripts import Argument

if TYPE_CHECKING:
    from bestofn.service.queue.job_queue import Queue

WRITER = "api"  # of their files, in an images folder
RETRY_SECONDS = 5.0
_ACTIVE = {status.encode() for status in ACTIVE}


async def submit_staged(queue: "Queue", sent: Sequence[bytes], **arguments: Argument) -> Any:
    """Run the submission script, and store a job's images once it would accept the job.

    Args:
        queue: takes the job.
        sent: files of the job's images by candidate; none if its candidates are drawn.
        arguments: of the script, but `staged`.

    Returns:
        The script's reply.

    Raises:
        Unavailable: the images cannot be stored.
    """
    job = str(arguments["job"])
    staged = queue.keys("staged", job, "sent", WRITER) if sent else ""
    reply = await queue.scripts("submit", **arguments, staged=staged)
    if reply != [b"stage"]:
        return reply
    try:
        images = await queue.images.put(job, WRITER, dict(enumerate(sent)))
    except ImageNotStored as error:
        raise Unavailable(f"{error}; try again later", retry_after=RETRY_SECONDS) from error
    if not await stage(queue.redis, staged, images):
        raise Unavailable("the queue's memory is full; try again later", retry_after=RETRY_SECONDS)
    reply = await queue.scripts("submit", **arguments, staged=staged)
    await queue.redis.unlink(staged)  # of a job that was refused after all; else it is renamed
    return reply


async def with_images(queue: "Queue", heat: Heat) -> Heat | None:
    """The heat with the sent images of its candidates; None if its job has ended.

    Raises:
        JobUnreadable: an image cannot be read.
    """
    job = heat.job.id
    if not heat.job.sent or heat.is_finals:
        return heat
    held = await queue.redis.hmget(queue.keys("sent", job), list(heat.candidates))
    images: dict[int, bytes] = {}
    if None in held and await queue.redis.hget(queue.keys("job", job), "status") not in _ACTIVE:
        return None
    for candidate, image in zip(heat.candidates, held, strict=True):
        if image is None:
            raise JobUnreadable(f"the sent image of candidate {candidate} is gone")
        try:
            images[candidate] = await queue.images.get(job, candidate, image)
        except ImageNotFound as error:
            raise JobUnreadable(error.detail) from error
    return replace(heat, images=images)
