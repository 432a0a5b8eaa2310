"""Admission: bytes that a job may take, and the error for each refusal of the submission script."""

from collections.abc import Mapping, Sequence

from bestofn.service.core.deployments import work_text
from bestofn.service.core.errors import BestOfNError, IdempotencyMismatch, InvalidRequest, Overloaded, Unavailable
from bestofn.service.core.jobs import THUMBNAILS_KEPT, ImageFormat, JobSpec
from bestofn.service.core.settings import Settings

BUSY_RETRY_SECONDS = 5.0  # where nothing better is known
LEAST_RETRY_SECONDS, MOST_RETRY_SECONDS = 1.0, 60.0
OWN_SHARE = 0.75
"""A key's share of what the other keys leave of a limit: alone it gets three quarters, and some is always left."""
KEPT_SHARE = 0.5
"""Share of the server's memory for all that is kept of jobs with a key, images aside."""

# Upper bounds of an image in bytes a pixel: admission reserves them until the image is stored.
_BYTES_A_PIXEL: Mapping[ImageFormat, float] = {"png": 3.1, "webp": 1.5, "jpeg": 1.5}
_BYTES_A_THUMBNAIL = 8 * 1024
_BYTES_A_STORY, _BYTES_A_CHARACTER = 2048, 16  # a file holds its prompt twice: as UTF-8, and escaped in its metadata
_BYTES_A_JOB, _BYTES_A_CANDIDATE = 10 * 1024, 600  # upper bounds of what else the queue keeps


def image_bytes(spec: JobSpec, *, apart: bool) -> int:
    """Upper bound of the bytes of a job's images in the queue's server; `apart`: winners' images are files."""
    thumbnails = min(spec.num_samples, THUMBNAILS_KEPT) * _BYTES_A_THUMBNAIL if spec.thumbnails else 0
    if spec.sent:  # until its end a job holds its sent images, and copies of those in play
        sizes = sorted((sent.size for sent in spec.sent), reverse=True)
        return thumbnails + (0 if apart else sum(sizes) + sum(sizes[: spec.num_images_kept]))
    story = _BYTES_A_STORY + _BYTES_A_CHARACTER * len(spec.prompt + spec.negative_prompt)
    image = int(spec.width * spec.height * _BYTES_A_PIXEL[spec.format] + story)
    return thumbnails + (0 if apart else min(spec.num_images_kept, spec.num_samples) * image)


def job_bytes(spec: JobSpec, text: bytes) -> int:
    """Upper bound of the bytes of all else that is kept of a job. `text`: its stored form."""
    return _BYTES_A_JOB + len(text) + _BYTES_A_CANDIDATE * spec.num_samples


def own_limit(own: int, everyone: int, limit: int) -> int:
    """What a key that has `own` may have of a limit, of which all callers have `everyone`; as in submit.lua."""
    return max(0, int(OWN_SHARE * (limit - everyone + own)))


def check_size(spec: JobSpec, cost: float, images: int, settings: Settings, caller: str) -> None:
    """Raise InvalidRequest for a job that can never fit: into a limit of the server, or into a key's share of it.

    Args:
        spec: the job.
        cost: its work in TFLOP.
        images: bytes of its images.
        settings: limits of the server.
        caller: name of the API key; "": none.
    """
    share, whose = (OWN_SHARE, " of a key") if caller else (1, "")
    budget = int(share * settings.image_budget_bytes)
    if images > budget:
        raise InvalidRequest(
            f"the images of this job may take {images:,} bytes, and this server keeps at most {budget:,} bytes"
            f"{' for a key' if caller else ''}; ask for fewer or smaller images, or for webp or jpeg",
            field="top_k",
        )
    own = settings.max_queued_candidates_per_key if caller else None
    most = int(share * settings.max_queued_candidates)
    most = most if own is None else min(most, own)
    most_work = None if settings.max_queued_tflops is None else share * settings.max_queued_tflops
    field = "images" if spec.sent else "num_samples"
    if spec.num_samples > most:
        raise InvalidRequest(
            f"at most {most} candidates{whose} may wait on this server, got a job of {spec.num_samples}", field=field
        )
    if most_work is not None and cost > most_work:
        raise InvalidRequest(
            f"at most {work_text(most_work)} TFLOP{whose} may wait on this server, and this job takes about "
            f"{work_text(cost)}; ask for fewer candidates or steps",
            field=field,
        )


def refusal(reply: Sequence[bytes | int], spec: JobSpec, settings: Settings, speed: float) -> BestOfNError:
    """The error that a refused submission raises.

    Args:
        reply: reply of submit.lua; its first word is the reason.
        spec: the refused job.
        settings: limits of the server.
        speed: speed of all workers in TFLOP a second; 0 if it is not known.
    """
    reason, *facts = (part.decode() if isinstance(part, bytes) else part for part in reply)
    numbers = [fact for fact in facts if isinstance(fact, int)]
    match reason:
        case "mismatch":
            return IdempotencyMismatch(
                f"this Idempotency-Key was used with another request (job {facts[0]}); use a new key",
                field="Idempotency-Key",
            )
        case "unknown":
            return Unavailable(
                f"no worker has ever announced model {spec.model.name} with judge {spec.judge.name}; start one",
                retry_after=BUSY_RETRY_SECONDS,
            )
        case "memory":
            return Unavailable(f"{nearly_full(*numbers)}; try again later", retry_after=BUSY_RETRY_SECONDS)
        case "webhooks":
            return Overloaded(
                f"{numbers[0]} webhooks wait to be sent, as many as the limit; try again later, or without webhook",
                retry_after=MOST_RETRY_SECONDS,
            )
        case "candidates" | "caller" | "work" | "own_work":
            held, gflop, *limit = numbers
            limits = {
                "candidates": f"{held} candidates wait, and {spec.num_samples} more would pass the limit of "
                f"{settings.max_queued_candidates}",
                "caller": f"{held} candidates of this key wait, and {spec.num_samples} more would pass its limit of "
                f"{limit[0] if limit else 0}",
                "work": f"about {work_text(held / 1000)} TFLOP of work wait, and this job would pass the limit of "
                f"{work_text(settings.max_queued_tflops or 0)}",
                "own_work": f"about {work_text(held / 1000)} TFLOP of this key wait, and this job would pass its "
                f"limit of {work_text(sum(limit) / 1000)}; ask for fewer candidates or steps",
            }
            return Overloaded(f"{limits[reason]}; try again later", retry_after=retry_seconds(gflop / 1000, speed))
        case "images" | "own_images" | "own_kept":
            soonest, held, *own = numbers
            return Overloaded(
                _no_room(reason, held, *own, budget=settings.image_budget_bytes),
                retry_after=max(LEAST_RETRY_SECONDS, soonest / 1000) if soonest >= 0 else BUSY_RETRY_SECONDS,
            )
    raise AssertionError(f"submit.lua returned {reply!r}")


def _no_room(reason: str, held: int, more: int = 0, limit: int = 0, *, budget: int) -> str:
    if reason == "images":
        return (
            f"images of other jobs hold {held:,} of {budget:,} bytes; try again when some have expired, or ask for "
            "fewer or smaller images"
        )
    own = f"hold {held:,} bytes, and {more:,} more would pass its limit of {limit:,}; try again when some have expired"
    if reason == "own_images":
        return f"images of this key {own}, or ask for fewer or smaller images"
    return f"jobs of this key {own}, or ask for fewer candidates or shorter prompts"


def nearly_full(used: int, limit: int) -> str:
    """The message for a server that uses `used` of `limit` bytes."""
    return f"the queue's memory is nearly full ({used >> 20} of {limit >> 20} MiB)"


def retry_seconds(tflops: float, speed: float) -> float:
    """Seconds until there is room, if `tflops` of work have to be done first; bounded on both sides."""
    if not speed:
        return BUSY_RETRY_SECONDS
    return min(max(tflops / speed, LEAST_RETRY_SECONDS), MOST_RETRY_SECONDS)
