"""Deployments that workers announce: looked up a few times a second at most, with its tokenizers."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from tokenizers import Tokenizer

from bestofn.judge.verdict import Rule
from bestofn.service.core.deployments import NO_WORKER_RETRY_SECONDS, Deployment, choose_deployment, deployments_of
from bestofn.service.core.errors import BestOfNError, Unavailable
from bestofn.service.queue.job_queue import Queue

FRESH_SECONDS = 0.25


def _without_workers(announced: Deployment, live: Sequence[Deployment]) -> Deployment:
    """A deployment as a worker once announced it. Its pairwise judge counts until other workers say otherwise."""
    pairs = ((deployment.model.revision, deployment.judge.revision) for deployment in live)
    replaced = (announced.model.revision, announced.judge.revision) in pairs
    pairwise = None if replaced else announced.pairwise_judge
    return replace(announced, capacities=(), tflops_per_second=0.0, pairwise_judge=pairwise)


class Deployed:
    """The pairs of model and judge that a request can name."""

    def __init__(self, queue: Queue, clock: Callable[[], float] = time.monotonic) -> None:
        self._queue = queue
        self._clock = clock
        self._live: list[Deployment] = []
        self._announced: list[Deployment] = []
        self._stale_at = 0.0

    async def choose(
        self,
        model: str | None,
        judge: str | None,
        rule: Rule = Rule.MARGIN,
        *,
        finals: bool = False,
        any_model: bool = False,
    ) -> Deployment:
        """The pair that serves a request; arguments and errors as of `choose_deployment`.

        What was refused with an old list is tried with a new one.
        """
        choose = partial(choose_deployment, model=model, judge=judge, rule=rule, finals=finals, any_model=any_model)
        if self._live and self._clock() < self._stale_at:
            try:
                return choose(self._live, self._announced)
            except BestOfNError:
                pass
        live, announced = deployments_of(await self._queue.workers()), deployments_of(await self._queue.announced())
        self._live, self._announced = live, [_without_workers(deployment, live) for deployment in announced]
        self._stale_at = self._clock() + FRESH_SECONDS
        if not announced and await self._queue.redis.exists(self._queue.keys("pairs")):
            raise Unavailable(
                "the workers run another version of bestofn, whose jobs differ: update them, or this server",
                retry_after=NO_WORKER_RETRY_SECONDS,
            )
        return choose(self._live, self._announced)


KEPT = 8  # tokenizers in memory; Gemma's takes about 200 MB


class TokenCounters:
    """Tokenizers by the hash of their file, fetched once."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._kept: OrderedDict[str, Tokenizer] = OrderedDict()
        self._lock = asyncio.Lock()

    async def load(self, sha256: str) -> None:
        """Make sure that `count` knows this tokenizer. Parsing a large one takes seconds: not on the event loop."""
        async with self._lock:
            if sha256 not in self._kept:
                content = await self._queue.tokenizer(sha256)
                tokenizer = await asyncio.to_thread(Tokenizer.from_buffer, content)
                # The file may ask for cutting or padding, which would hide how long a text is.
                tokenizer.no_truncation()
                tokenizer.no_padding()
                self._kept[sha256] = tokenizer
            self._kept.move_to_end(sha256)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)

    def count(self, sha256: str, text: str) -> int:
        """Tokens of `text`, control tokens included. Raises KeyError for a tokenizer that was not loaded."""
        return len(self._kept[sha256].encode(text).ids)
