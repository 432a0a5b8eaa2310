"""Errors under /v1 in OpenAI's form: every problem document is rewritten on its way out."""

import json

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bestofn.service.api.problem_details import MEDIA_TYPE
from bestofn.service.core.openai_schemas import error_body

PREFIX = "/v1/"
STATUS_UNDER_V1 = {422: 400}  # clients of OpenAI know a bad request as 400


class OpenAIErrors:
    """ASGI middleware around everything that may refuse a call. Headers stay, Retry-After and x-should-retry too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            return await self._app(scope, receive, send)
        start: Message | None = None
        problem = b""

        async def rewrite(message: Message) -> None:
            nonlocal start, problem
            if message["type"] == "http.response.start":
                if MutableHeaders(scope=message).get("content-type") != MEDIA_TYPE:
                    return await send(message)
                start = message
            elif start is None:
                await send(message)
            else:
                problem += message.get("body", b"")
                if not message.get("more_body", False):
                    await _send(start, problem, send)

        await self._app(scope, receive, rewrite)


async def _send(start: Message, problem: bytes, send: Send) -> None:
    body = json.dumps(error_body(json.loads(problem))).encode()
    headers = MutableHeaders(scope=start)
    headers["Content-Type"] = "application/json"
    headers["Content-Length"] = str(len(body))
    await send({**start, "status": STATUS_UNDER_V1.get(start["status"], start["status"])})
    await send({"type": "http.response.body", "body": body})
