"""Metrics of API and worker processes, each kind in a registry of its own; those of the queue are in `queue_metrics`.

A worker always counts its own, and shows them where BESTOFN_METRICS_PORT is set.
"""

from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

from bestofn.service.core.version import VERSION

disable_created_metrics()  # type: ignore[no-untyped-call]  # no creation time for every counter

# Seconds: from an answer out of memory to a thousand candidates on a laptop.
LATENCY = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640, 1280)


def _new_registry() -> CollectorRegistry:
    """A registry with the metrics of every process: version, memory, CPU time, open files."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    Info("bestofn_build", "Version of bestofn.", registry=registry).info({"version": VERSION})
    return registry


API_REGISTRY, WORKER_REGISTRY = _new_registry(), _new_registry()
_api_counter = partial(Counter, registry=API_REGISTRY)
_worker_counter = partial(Counter, registry=WORKER_REGISTRY)
_worker_gauge = partial(Gauge, registry=WORKER_REGISTRY)
_worker_histogram = partial(Histogram, registry=WORKER_REGISTRY)

REQUESTS = _api_counter("bestofn_http_requests", "Requests answered.", ("method", "route", "status"))
REQUEST_SECONDS = Histogram(
    "bestofn_http_request_seconds",
    "Time to the end of an answer, waiting for jobs included.",
    ("method", "route"),
    buckets=LATENCY,
    registry=API_REGISTRY,
)
REFUSED = _api_counter("bestofn_refused", "Requests answered with an error, by its code.", ("code",))
WEBHOOKS = _api_counter("bestofn_webhooks", "Attempts at webhooks, by outcome.", ("outcome",))
EVENT_STREAMS = Gauge("bestofn_event_streams_open", "Event streams that are being sent.", registry=API_REGISTRY)

WORKER = Info("bestofn_worker", "Device, model and judge of this worker.", registry=WORKER_REGISTRY)
SLOTS = _worker_gauge("bestofn_slots", "Candidates that the device denoises together.")
BATCH_FILL = _worker_histogram(
    "bestofn_batch_fill_ratio",
    "Slots that a forward of the transformer advanced, of all slots.",
    buckets=(0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0),
)
TICK_SECONDS = _worker_histogram(
    "bestofn_tick_seconds",
    "Time of one turn of the engine: a forward, and the decoding and judging that became due.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
STAGE_SECONDS = _worker_counter("bestofn_stage_seconds", "Device time of finished heats by stage.", ("stage",))
TFLOPS = _worker_counter("bestofn_tflops", "Work of finished heats, in TFLOP.")
CANDIDATES = _worker_counter("bestofn_candidates_generated", "Candidates drawn and judged.")
WASTED = _worker_counter(
    "bestofn_candidates_wasted", "Candidates drawn and judged whose heat was not stored, by outcome.", ("outcome",)
)
VERDICTS = _worker_counter("bestofn_judge_verdicts", "Verdicts by the judge's answer.", ("answer",))
INVALID = _worker_counter("bestofn_judge_invalid", "Verdicts whose logits were not finite numbers.")
PROMPT_HITS = _worker_counter("bestofn_prompt_cache_hits", "Prompt contexts found in the cache.")
PROMPT_MISSES = _worker_counter("bestofn_prompt_cache_misses", "Prompt contexts encoded.")
OUT_OF_MEMORY = _worker_counter("bestofn_oom", "Batches that did not fit into memory.", ("stage",))
UNRECORDED = _worker_counter(
    "bestofn_unrecorded_forwards", "Forwards that no CUDA graph could be made of, so that they run slower."
)

HEATS = _worker_counter(
    "bestofn_heats",
    "Heats that left this worker, by outcome: completed, duplicate, retried, dead_lettered or released.",
    ("outcome",),
)
HEAT_SECONDS = _worker_histogram(
    "bestofn_heat_seconds",
    "Time from the claim of a heat to its filing.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320),
)
DEAD = _worker_counter("bestofn_dead", "Heats given up for good, which fail their job.")
RECLAIMS = _worker_counter("bestofn_reclaims", "Heats taken over from workers that are gone.")
DELIVERIES = _worker_histogram(
    "bestofn_heat_deliveries",
    "How often a heat had been delivered when it was claimed; 1 is the first time.",
    buckets=(1, 2, 3, 4),
)
LEASES = _worker_gauge("bestofn_leases_held", "Heats that this worker holds.")
LEASES_LOST = _worker_counter("bestofn_leases_lost", "Leases that ran out while the heat was held.")
DEVICE_MEMORY = _worker_gauge(
    "bestofn_device_memory_bytes",
    "Memory of the device: its total, what is used on it, and what this process' tensors take.",
    ("device", "kind"),
)


def watch_device(device: str, memory: Callable[[], tuple[int, int]], allocated: Callable[[], int]) -> None:
    """Shows the device's memory, asked for whenever the metrics are read.

    Args:
        device: its name, such as cuda:0.
        memory: (free, total) bytes of the device.
        allocated: bytes of this process' tensors.
    """
    DEVICE_MEMORY.labels(device, "total").set_function(lambda: memory()[1])
    DEVICE_MEMORY.labels(device, "used").set_function(lambda: memory()[1] - memory()[0])
    DEVICE_MEMORY.labels(device, "allocated").set_function(allocated)
