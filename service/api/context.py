"""What every route needs: the queue, the settings and the tokenizers of one API process."""

import asyncio
import re
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Path, Request

from bestofn.service.api.tokens import TokenCounters
from bestofn.service.errors import JobNotFound
from bestofn.service.queue.queue import Queue
from bestofn.service.settings import Settings


@dataclass(slots=True)
class Context:
    """Of one API process. `stopping` is set when it should answer its waiting calls and end."""

    queue: Queue
    settings: Settings
    counters: TokenCounters
    stopping: asyncio.Event = field(default_factory=asyncio.Event)


def context_of(request: Request) -> Context:
    context = request.app.state.context
    assert isinstance(context, Context)
    return context


ContextDep = Annotated[Context, Depends(context_of)]


def _checked_id(job_id: Annotated[str, Path(examples=["3f9a0c61b2d84e57a1c0d9e8"])]) -> str:
    """Ids become parts of keys in Redis: nothing but what we may have generated ever gets there."""
    if not re.fullmatch(r"[0-9a-f]{1,64}", job_id):
        raise JobNotFound(f"there is no job {job_id[:64]!a}")
    return job_id


JobId = Annotated[str, Depends(_checked_id)]
