"""Submission: from a request to a job in the queue, the same for every route that takes requests."""

import asyncio
import hashlib
import json
import secrets
from collections.abc import Sequence
from typing import Any

from structlog.contextvars import bind_contextvars

from bestofn.service.api.dependencies import Context
from bestofn.service.api.request_bodies import Upload
from bestofn.service.core.deployments import Deployment, tflops
from bestofn.service.core.errors import InvalidRequest
from bestofn.service.core.jobs import ImageFormat, JobSpec
from bestofn.service.core.planning import job_spec, rank_spec
from bestofn.service.core.rank_request import RankFields
from bestofn.service.core.schemas import RANDOM_SEEDS, GenerateRequest
from bestofn.service.core.webhooks import check_webhook
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
        context: state of this process.
        body: the request.
        image_format: overrules the request's, for callers whose Accept header chose.
        caller: name of the API key, which owns the job, its limits and its Idempotency-Keys; "": no key.
        key: the Idempotency-Key, if there is one.

    Raises:
        InvalidRequest, IdempotencyMismatch, Overloaded, Unavailable: as `job_spec` and `Queue.submit` say.
        PromptRefused, Unavailable: as `CheckServer.check_prompt` says.
    """
    async with context.open_calls.turns.of(caller):
        deployment = await _deployment(context, body, body.model)
        spec = job_spec(
            body,
            deployment,
            context.settings,
            job_id=secrets.token_hex(12),
            random_seed=secrets.randbelow(RANDOM_SEEDS),
            count_tokens=context.counters.count,
            image_format=image_format,
        )
        fingerprint = fingerprint_of(body, format=spec.format)
        return await _queued(context, spec, deployment, body.webhook, caller, key, fingerprint)


async def submit_rank(context: Context, upload: Upload, *, caller: str, key: str | None = None) -> tuple[str, bool]:
    """Submit the job that judges sent images; arguments, result and errors as of `submit`."""
    body, files = upload.options, upload.files
    async with context.open_calls.turns.of(caller):
        deployment = await _deployment(context, body, None, any_model=True)
        spec = rank_spec(
            body,
            upload.images,
            deployment,
            context.settings,
            job_id=secrets.token_hex(12),
            count_tokens=context.counters.count,
        )
        spec = spec.model_copy(update={"warnings": upload.warnings})
        # Names of files have no effect, and neither has the kind of body.
        hashes = await asyncio.to_thread(lambda: [hashlib.sha256(data).hexdigest() for data in files])
        fingerprint = fingerprint_of(body, images=hashes)
        return await _queued(context, spec, deployment, body.webhook, caller, key, fingerprint, files)


async def _deployment(
    context: Context, body: GenerateRequest | RankFields, model: str | None, *, any_model: bool = False
) -> Deployment:
    """The deployment that serves a request, whose webhook is checked too; its tokenizers are loaded."""
    if body.webhook is not None:
        check_webhook(body.webhook, context.settings)
    finals = body.finals is not None
    deployment = await context.deployed.choose(model, body.judge, body.rule, finals=finals, any_model=any_model)
    for sha256 in deployment.tokenizers:
        await context.counters.load(sha256)
    return deployment


async def _queued(
    context: Context,
    spec: JobSpec,
    deployment: Deployment,
    webhook: str | None,
    caller: str,
    key: str | None,
    fingerprint: str,
    sent: Sequence[bytes] = (),
) -> tuple[str, bool]:
    """Queue a job, or find the one that the Idempotency-Key names."""
    if key is not None and not (0 < len(key) <= MAX_KEY and key.isprintable()):
        raise InvalidRequest(f"Idempotency-Key must have 1 to {MAX_KEY} printable characters", field="Idempotency-Key")
    if context.prompt_checker is not None:
        await context.prompt_checker.check_prompt(spec.prompt)
    job, created = await context.queue.submit(
        spec,
        # Two callers who pick the same key must not get each other's images.
        idempotency_key=None if key is None else f"{caller}:{key}",
        fingerprint=fingerprint,
        cost=tflops(spec, deployment),
        caller=caller,
        traceparent=traceparent(),
        sent=sent,
        webhook=webhook or "",
    )
    context.refusal_limiter.accepted(caller)
    # The hash identifies repeated prompts; a guessed prompt can be checked against it.
    short_hash = hashlib.sha256(spec.prompt.encode()).hexdigest()[:12]
    logged = {"prompt": spec.prompt} if context.settings.log_prompts else {"prompt_sha256": short_hash}
    bind_contextvars(job_id=job, **logged)  # for the request's line in the log
    return job, created


def fingerprint_of(body: GenerateRequest | RankFields, **decided: Any) -> str:
    """A hash that is the same for requests of the same values: a default that is written is one that is left out.

    `decided` are values that count in place of the body's.
    """
    asked = body.model_dump(mode="json", exclude_defaults=True, exclude={"images"}) | decided
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
