"""Submission: from a request to a job in the queue, the same for every route that takes requests."""

import hashlib
import json
import secrets

from structlog.contextvars import bind_contextvars

from bestofn.service.api.dependencies import Context
from bestofn.service.core.errors import InvalidRequest
from bestofn.service.core.job_cost import tflops
from bestofn.service.core.jobs import ImageFormat
from bestofn.service.core.planning import job_spec
from bestofn.service.core.schemas import RANDOM_SEEDS, GenerateRequest
from bestofn.service.telemetry.traces import traceparent

MAX_KEY = 255


async def submit(
    context: Context,
    body: GenerateRequest,
    *,
    image_format: ImageFormat | None = None,
    caller: str,
    key: str | None = None,
) -> tuple[str, bool]:
    """Submit the job that a request asks for; returns its id and whether this call made it.

    Args:
        context: of this process.
        body: the request.
        image_format: overrules the request's, for callers whose Accept header chose.
        caller: name of the API key, which owns the job, its limits and its Idempotency-Keys; "": no key.
        key: the Idempotency-Key, if there is one.

    Raises:
        InvalidRequest, IdempotencyMismatch, Overloaded, Unavailable: as `job_spec` and `Queue.submit` say.
    """
    async with context.open_calls.turn(caller):
        queue = context.queue
        deployment = await context.deployed.choose(body.model, body.judge, body.rule, finals=body.finals is not None)
        for sha256 in deployment.tokenizers:
            await context.counters.load(sha256)
        spec = job_spec(
            body,
            deployment,
            context.settings,
            job_id=secrets.token_hex(12),
            random_seed=secrets.randbelow(RANDOM_SEEDS),
            count_tokens=context.counters.count,
            image_format=image_format,
        )
        scoped = fingerprint = None
        if key is not None:
            if not (0 < len(key) <= MAX_KEY and key.isprintable()):
                raise InvalidRequest(
                    f"Idempotency-Key must have 1 to {MAX_KEY} printable characters", field="Idempotency-Key"
                )
            # Two callers who pick the same key must not get each other's images.
            scoped = f"{caller}:{key}"
            fingerprint = fingerprint_of(body, spec.format)
        job, created = await queue.submit(
            spec,
            idempotency_key=scoped,
            fingerprint=fingerprint,
            cost=tflops(spec, deployment),
            caller=caller,
            traceparent=traceparent(),
        )
    context.refusal_limiter.accepted(caller)
    logged = {"prompt": spec.prompt} if context.settings.log_prompts else {"prompt_sha256": _short_hash(spec.prompt)}
    bind_contextvars(job_id=job, **logged)  # for the request's line in the log
    return job, created


def fingerprint_of(body: GenerateRequest, format: ImageFormat) -> str:
    """A hash that is the same for requests of the same values: a default that is written is one that is left out."""
    asked = body.model_dump(mode="json", exclude_defaults=True) | {"format": format}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _short_hash(prompt: str) -> str:
    """A short hash that identifies repeated prompts. A guessed prompt can be checked against it."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:12]
