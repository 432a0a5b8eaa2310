"""Server-sent events over HTTP: encoding, keep-alive comments, and the end of the stream when the reader has gone."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi.sse import format_sse_event
from starlette.responses import StreamingResponse

from bestofn.service.api.wait import end_tasks

KEEP_ALIVE_SECONDS = 15.0  # proxies end a connection that is silent for longer than about 60 s
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event of a stream; `data` is sent as JSON."""

    type: str
    data: Any
    id: str | None = None
    retry_ms: int | None = None


class EventStream(StreamingResponse):
    """A response of server-sent events."""

    media_type = "text/event-stream"


def stream_response(events: AsyncGenerator[ServerSentEvent, None], headers: dict[str, str]) -> EventStream:
    """Send events as they come. The generator is closed at the end of the stream.

    Args:
        events: of one reader.
        headers: sent with the status 200, before the first event.
    """
    return EventStream(_encoded(events), headers=HEADERS | headers)


async def _encoded(events: AsyncGenerator[ServerSentEvent, None]) -> AsyncIterator[bytes]:
    async with contextlib.aclosing(events):
        coming: asyncio.Task[ServerSentEvent] | None = None
        try:
            while True:
                coming = coming or asyncio.ensure_future(anext(events))
                done, _ = await asyncio.wait({coming}, timeout=KEEP_ALIVE_SECONDS)
                if not done:
                    yield format_sse_event(comment="keep-alive")
                    continue
                try:
                    event = coming.result()
                except StopAsyncIteration:
                    return
                coming = None
                yield format_sse_event(
                    data_str=json.dumps(event.data, ensure_ascii=False, separators=(",", ":")),
                    event=event.type,
                    id=event.id,
                    retry=event.retry_ms,
                )
        finally:
            if coming is not None:
                await end_tasks({coming})
