"""Server-sent events over HTTP: encoding, keep-alive comments, and the end of the stream when the reader has gone."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi.sse import format_sse_event
from starlette.responses import StreamingResponse

from bestofn.service.queue.connection import end_tasks

KEEP_ALIVE_SECONDS = 15.0  # proxies end a connection that is silent for longer than about 60 s
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class EventStream(StreamingResponse):
    """A response of server-sent events."""

    media_type = "text/event-stream"


def encode(type: str, data: Any, id: str | None = None, retry_ms: int | None = None) -> bytes:
    """An event as it is sent, its data as JSON."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return format_sse_event(data_str=text, event=type, id=id, retry=retry_ms)


def stream_response(events: AsyncGenerator[bytes, None], headers: dict[str, str]) -> EventStream:
    """Send encoded events as they come. The generator is closed at the end of the stream.

    Args:
        events: events of one reader, one or several at once.
        headers: sent with the status 200, before the first event.
    """
    return EventStream(_kept_alive(events), headers=HEADERS | headers)


async def _kept_alive(events: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    coming: asyncio.Task[bytes] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait({coming}, timeout=KEEP_ALIVE_SECONDS)
            if not done:
                yield format_sse_event(comment="keep-alive")
                continue
            try:
                encoded = coming.result()
            except StopAsyncIteration:
                return
            coming = None
            yield encoded
    finally:
        # A task of its own: Starlette cancels the stream of a caller who has gone at every step, this one included.
        ending = asyncio.create_task(_end(events, coming))
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(ending)


async def _end(events: AsyncGenerator[bytes, None], coming: "asyncio.Task[bytes] | None") -> None:
    if coming is not None:
        await end_tasks({coming})
    await events.aclose()
