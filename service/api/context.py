"""What every route needs: the queue, the settings and the tokenizers of one API process."""

import asyncio
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Path, Request

from bestofn.service.api.tokens import TokenCounters
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
# Ids become parts of keys in Redis: nothing but what we generate ever gets there.
JobId = Annotated[str, Path(pattern="^[a-z0-9-]{1,64}$", examples=["3f9a0c61b2d84e57a1c0d9e8"])]
