"""Errors as RFC 9457 problem documents, or in OpenAI's form under /v1: refusals of ours, FastAPI and Starlette."""

import json
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from redis.exceptions import RedisError, ResponseError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Receive, Scope, Send
from structlog.contextvars import bind_contextvars, get_contextvars

from bestofn.service.api.field_hints import hint
from bestofn.service.core.errors import (
    BestOfNError,
    DeadlinePassed,
    InvalidRequest,
    JobCanceled,
    JobFailed,
    JobUnreadable,
    Unavailable,
)
from bestofn.service.core.field_errors import explain
from bestofn.service.core.openai_schemas import error_body
from bestofn.service.queue.admission import BUSY_RETRY_SECONDS
from bestofn.service.queue.connection_errors import away, moved, why

MEDIA_TYPE = "application/problem+json"
PREFIX = "/v1/"
STATUS_UNDER_V1 = {422: 400}  # clients of OpenAI know a bad request as 400
MOST_ERRORS = 8  # that are explained of one request, so that no answer is much longer than what it answers
QUEUE_RETRY_SECONDS = 2.0  # a restarted queue server answers again within seconds


# Errors that would come again if the same request were sent again, whatever their status suggests to a client.
_FINAL = (JobFailed, JobUnreadable, JobCanceled, DeadlinePassed)
_CODES = {
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    408: "request_timeout",
    413: "payload_too_large",
}


def document(status: int, code: str, detail: str) -> dict[str, Any]:
    """The members that every problem document has."""
    return {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
    }


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    field: str | None = None,
    errors: Sequence[Mapping[str, Any]] = (),
    retry_after: float | None = None,
    job: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A problem document. `retry_after` is in seconds and also goes into the headers that clients read.

    `retry-after-ms` is what the OpenAI clients look at first; they also obey `x-should-retry`.
    """
    bind_contextvars(code=code)  # for the request's line in the log, and for the counts
    extras = {
        "field": field,
        "errors": list(errors) or None,
        "retry_after": retry_after,
        "job": job,
        "request_id": get_contextvars().get("request_id"),
    }
    body = document(status, code, detail) | {name: value for name, value in extras.items() if value is not None}
    sent = dict(headers or {})
    if retry_after is not None:
        sent |= {"Retry-After": str(math.ceil(retry_after)), "retry-after-ms": str(round(1000 * retry_after))}
    # ASCII only: a message may quote a lone surrogate, which has no UTF-8.
    return _Problem(body, sent)


class _Problem(Response):
    """A problem document, under /v1 in OpenAI's form. Headers are the same, Retry-After and x-should-retry too."""

    def __init__(self, document: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        super().__init__(json.dumps(document), document["status"], headers, MEDIA_TYPE)
        self._document = document
        self._sent = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not scope["path"].startswith(PREFIX):
            return await super().__call__(scope, receive, send)
        status = STATUS_UNDER_V1.get(self.status_code, self.status_code)
        theirs = Response(json.dumps(error_body(self._document)), status, self._sent, "application/json")
        await theirs(scope, receive, send)


def problem_of(error: BestOfNError, *, job: str | None = None, headers: Mapping[str, str] | None = None) -> Response:
    """The problem document of an error of ours; `job` and `headers` say where its job can be found."""
    sent = dict(headers or {})
    if isinstance(error, _FINAL):
        sent["x-should-retry"] = "false"
    if error.status == HTTPStatus.UNAUTHORIZED:
        sent["WWW-Authenticate"] = "Bearer"
    return problem(
        error.status,
        error.code,
        error.detail,
        field=error.field,
        retry_after=error.retry_after,
        job=job,
        headers=sent,
    )


def install(app: FastAPI) -> None:
    """Make every error that leaves `app` a problem document."""
    app.add_exception_handler(BestOfNError, _ours)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(RedisError, _queue_lost)


async def _ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, BestOfNError)
    return problem_of(error)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    detail = error.detail
    if status == HTTPStatus.NOT_FOUND:
        detail = f"there is nothing at {request.url.path}; /docs lists what there is"
    elif status == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = ", ".join(_methods(request))
        detail = f"{request.method[:20]} is not possible at {request.url.path}; use {allowed}"
        return problem(status, _CODES[status], detail, headers={"Allow": allowed})
    elif status == HTTPStatus.BAD_REQUEST:
        status, detail = HTTPStatus.UNPROCESSABLE_ENTITY, "the body cannot be read as JSON in UTF-8"
    return problem(status, _CODES.get(status, InvalidRequest.code), detail, headers=error.headers)


def _methods(request: Request) -> list[str]:
    """What the path takes, of all routes: Starlette's own Allow header knows the first one only."""
    scopes = [{**request.scope, "method": method} for method in ("GET", "POST", "DELETE")]
    routes = request.app.router.routes
    found = [scope["method"] for scope in scopes if any(route.matches(scope)[0] is Match.FULL for route in routes)]
    return ["GET", "HEAD", *found[1:]] if "GET" in found else found


async def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    entries = error.errors()
    body = error.body if isinstance(error.body, type) else _body(request)
    errors = [_explain(entry, body) for entry in entries[:MOST_ERRORS]]
    left = len(entries) - len(errors)
    detail = "; ".join([entry["detail"] for entry in errors] + ([f"{left} more of the kind"] if left else []))
    return problem(422, InvalidRequest.code, detail, field=errors[0].get("field"), errors=errors)


def _body(request: Request) -> type[BaseModel] | None:
    """The model of the body that the route takes."""
    body = getattr(request.scope.get("route"), "body_field", None)
    return None if body is None else body.field_info.annotation


def _explain(entry: Mapping[str, Any], body: type[BaseModel] | None) -> dict[str, str]:
    """One entry of a validation error in plain words."""
    place = [part for part in entry["loc"][1:] if isinstance(part, str)]
    if entry["type"] == "json_invalid":
        return {"detail": f"the body is not valid JSON: {entry['ctx']['error']} at character {entry['loc'][-1]}"}
    if entry["type"] == "string_unicode":
        field = ".".join(place) or "a field's name"
        return {"field": field, "detail": f"{field} holds a lone surrogate, which is not a character; remove it"}
    if not place:
        return {"detail": 'the body must be a JSON object with at least "prompt", such as {"prompt": "a red star"}'}
    field = _printable(".".join(place))
    if entry["type"] == "extra_forbidden":
        return {"field": field, "detail": f"{field} is not a field; {hint(place, body)}"}
    if entry["type"] == "missing":
        return {"field": field, "detail": f"{field} is required"}
    return {"field": field, "detail": explain(entry, field)}


def _printable(name: str) -> str:
    return name if name and name.isprintable() and len(name) <= 64 else ascii(name[:64])


async def _queue_lost(request: Request, error: Exception) -> Response:
    if not away(error):
        raise error
    if moved(error):
        context = request.app.state.context
        context.later(context.queue.drop_connections())
    wait = BUSY_RETRY_SECONDS if isinstance(error, ResponseError) else QUEUE_RETRY_SECONDS
    return problem_of(Unavailable(f"{why(error)}; try again", retry_after=wait))
