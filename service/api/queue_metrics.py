"""Metrics of the queue, the same on every API process: what it holds now, and how jobs have ended."""

import asyncio
from collections import Counter as Count
from collections.abc import Iterator
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily as Gauge
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from bestofn.service.core.jobs import JobStatus
from bestofn.service.core.schemas import QueueOut
from bestofn.service.queue.job_queue import Queue
from bestofn.service.queue.stats import EndedJob, QueueStats, ended_jobs, last_ended
from bestofn.service.telemetry.metrics import LATENCY

SCORES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


class QueueState(Collector):
    """A census as metrics; None says that the queue's server is away."""

    def __init__(self, stats: QueueStats | None) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats
        yield Gauge("bestofn_redis_up", "Whether the queue's server answers.", value=stats is not None)
        yield Gauge(
            "bestofn_ready",
            "Whether a request would be served now: the queue takes jobs and a worker is warm.",
            value=stats is not None and stats.refuses is None and bool(stats.workers),
        )
        if stats is None:
            return
        yield Gauge("bestofn_takes_jobs", "Whether the queue has room for jobs.", value=stats.refuses is None)
        yield from _work(stats.queue)
        yield from _workers(stats)
        held, budget = stats.queue.image_bytes, stats.queue.image_budget_bytes
        yield Gauge("bestofn_images_reserved_bytes", "Bytes of winners' images, here or to come.", held)
        yield Gauge("bestofn_images_budget_bytes", "Most of them: more is refused.", budget)
        yield Gauge("bestofn_redis_memory_bytes", "Memory of the queue's server.", stats.server.memory_bytes)
        yield Gauge("bestofn_redis_memory_limit_bytes", "Its limit; 0: none.", stats.server.max_memory_bytes or 0)


def _work(queue: QueueOut) -> Iterator[Metric]:
    jobs = Gauge("bestofn_backlog_jobs", "Jobs that wait or run.", labels=("priority",))
    candidates = Gauge("bestofn_backlog_candidates", "Candidates to be drawn yet.", labels=("priority",))
    tflops = Gauge("bestofn_backlog_tflops", "Work of those candidates, in TFLOP.", labels=("priority",))
    for priority, load in queue.by_priority.items():
        jobs.add_metric((priority,), load.jobs)
        candidates.add_metric((priority,), load.candidates)
        tflops.add_metric((priority,), load.tflops)
    states = Gauge("bestofn_jobs", "Jobs that have not ended, by status.", labels=("status",))
    states.add_metric((JobStatus.QUEUED,), queue.queued)
    states.add_metric((JobStatus.RUNNING,), queue.running)
    yield from (jobs, candidates, tflops, states)
    yield Gauge(
        "bestofn_oldest_wait_seconds", "Wait of the job that waits the longest.", value=queue.oldest_wait_seconds
    )
    if queue.estimated_wait_seconds is not None:
        yield Gauge("bestofn_backlog_seconds", "Time that the backlog will take.", value=queue.estimated_wait_seconds)
    yield Gauge("bestofn_dead_heats", "Heats in the dead-letter stream.", value=queue.dead_heats)


def _workers(stats: QueueStats) -> Iterator[Metric]:
    labels = ("model", "judge")
    workers = Gauge("bestofn_workers", "Warm workers, by what they hold and do.", labels=(*labels, "state"))
    slots = Gauge("bestofn_workers_slots", "Candidates that they denoise together.", labels=labels)
    speed = Gauge("bestofn_workers_tflops_per_second", "Their measured speed.", labels=labels)
    number, size, rate = Count[tuple[str, ...]](), Count[tuple[str, ...]](), dict[tuple[str, ...], float]()
    for info in stats.workers:
        pair = (info.model.revision.name, info.judge.revision.name)
        number[*pair, info.state] += 1
        size[pair] += info.capacity
        rate[pair] = rate.get(pair, 0.0) + (info.tflops_per_second or 0.0)
    for family, values in ((workers, number), (slots, size), (speed, rate)):
        for names, value in values.items():
            family.add_metric(names, value)
        yield family


class EndedJobs:
    """Counts jobs that end while this process runs, from the queue's record of them, at every `read`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._after: str | None = None
        self._lock = asyncio.Lock()
        counter, histogram = partial(Counter, registry=self.registry), partial(Histogram, registry=self.registry)
        priority = ("priority",)
        self._ended = counter("bestofn_jobs_ended", "Jobs by how they ended.", ("status",))
        why = "Jobs that were done or ran out of time, by why they ended; none: all candidates were judged."
        self._stopped = counter("bestofn_jobs_stopped", why, ("reason",))
        took = "Time from the submission of a job to its result."
        self._seconds = histogram("bestofn_job_seconds", took, priority, buckets=LATENCY)
        waited = "Time from the submission of a job to its start, of jobs with a result."
        self._waited = histogram("bestofn_job_queue_seconds", waited, priority, buckets=LATENCY)
        best = "The judge's probability of yes on the best candidate."
        self._score = histogram("bestofn_winner_score", best, ("model", "judge"), buckets=SCORES)

    async def read(self, queue: Queue) -> None:
        """Counts those that have ended since the last call; the first call only notes where to begin."""
        async with self._lock:
            if self._after is None:
                self._after = await last_ended(queue)
                return
            jobs, self._after = await ended_jobs(queue, self._after)
            for job in jobs:
                self._count(job)

    def _count(self, job: EndedJob) -> None:
        self._ended.labels(job.status).inc()
        if job.status is JobStatus.SUCCEEDED or job.stopped is not None:
            self._stopped.labels(job.stopped or "none").inc()
        if job.status is not JobStatus.SUCCEEDED:
            return
        self._seconds.labels(job.priority).observe(job.seconds)
        self._waited.labels(job.priority).observe(job.waited_seconds)
        if job.winner is not None and not job.winner.broken:
            self._score.labels(job.model, job.judge).observe(job.winner.p_yes)
