"""Metrics of API and worker processes, each kind in a registry of its own; those of the queue are in `queue_metrics`.

A worker always counts its own, and shows them where BESTOFN_METRICS_PORT is set.
"""

from collections.abc import Callable

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

REQUESTS = Counter("bestofn_http_requests", "Requests answered.", ("method", "route", "status"), registry=API_REGISTRY)
REQUEST_SECONDS = Histogram(
    "bestofn_http_request_seconds",
    "Time to the end of an answer, waiting for jobs included.",
    ("method", "route"),
    buckets=LATENCY,
    registry=API_REGISTRY,
)
REFUSED = Counter("bestofn_refused", "Requests answered with an error, by its code.", ("code",), registry=API_REGISTRY)
WEBHOOKS = Counter("bestofn_webhooks", "Attempts at webhooks, by outcome.", ("outcome",), registry=API_REGISTRY)
EVENT_STREAMS = Gauge("bestofn_event_streams_open", "Event streams that are being sent.", registry=API_REGISTRY)

WORKER = Info("bestofn_worker", "Device, model and judge of this worker.", registry=WORKER_REGISTRY)
SLOTS = Gauge("bestofn_slots", "Candidates that the device denoises together.", registry=WORKER_REGISTRY)
BATCH_FILL = Histogram(
    "bestofn_batch_fill_ratio",
    "Slots that a forward of the transformer advanced, of all slots.",
    buckets=(0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0),
    registry=WORKER_REGISTRY,
)
TICK_SECONDS = Histogram(
    "bestofn_tick_seconds",
    "Time of one turn of the engine: a forward, and the decoding and judging that became due.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
    registry=WORKER_REGISTRY,
)
STAGE_SECONDS = Counter(
    "bestofn_stage_seconds", "Device time of finished heats by stage.", ("stage",), registry=WORKER_REGISTRY
)
TFLOPS = Counter("bestofn_tflops", "Work of finished heats, in TFLOP.", registry=WORKER_REGISTRY)
CANDIDATES = Counter("bestofn_candidates_generated", "Candidates drawn and judged.", registry=WORKER_REGISTRY)
WASTED = Counter(
    "bestofn_candidates_wasted",
    "Candidates drawn and judged whose heat was not stored, by outcome.",
    ("outcome",),
    registry=WORKER_REGISTRY,
)
VERDICTS = Counter("bestofn_judge_verdicts", "Verdicts by the judge's answer.", ("answer",), registry=WORKER_REGISTRY)
INVALID = Counter("bestofn_judge_invalid", "Verdicts whose logits were not finite numbers.", registry=WORKER_REGISTRY)
PROMPT_HITS = Counter("bestofn_prompt_cache_hits", "Prompt contexts found in the cache.", registry=WORKER_REGISTRY)
PROMPT_MISSES = Counter("bestofn_prompt_cache_misses", "Prompt contexts encoded.", registry=WORKER_REGISTRY)
OUT_OF_MEMORY = Counter("bestofn_oom", "Batches that did not fit into memory.", ("stage",), registry=WORKER_REGISTRY)
UNRECORDED = Counter(
    "bestofn_unrecorded_forwards",
    "Forwards that no CUDA graph could be made of, so that they run slower.",
    registry=WORKER_REGISTRY,
)

HEATS = Counter(
    "bestofn_heats",
    "Heats that left this worker, by outcome: completed, duplicate, retried, dead_lettered or released.",
    ("outcome",),
    registry=WORKER_REGISTRY,
)
HEAT_SECONDS = Histogram(
    "bestofn_heat_seconds",
    "Time from the claim of a heat to its filing.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320),
    registry=WORKER_REGISTRY,
)
DEAD = Counter("bestofn_dead", "Heats given up for good, which fail their job.", registry=WORKER_REGISTRY)
RECLAIMS = Counter("bestofn_reclaims", "Heats taken over from workers that are gone.", registry=WORKER_REGISTRY)
DELIVERIES = Histogram(
    "bestofn_heat_deliveries",
    "How often a heat had been delivered when it was claimed; 1 is the first time.",
    buckets=(1, 2, 3, 4),
    registry=WORKER_REGISTRY,
)
LEASES = Gauge("bestofn_leases_held", "Heats that this worker holds.", registry=WORKER_REGISTRY)
LEASES_LOST = Counter("bestofn_leases_lost", "Leases that ran out while the heat was held.", registry=WORKER_REGISTRY)
DEVICE_MEMORY = Gauge(
    "bestofn_device_memory_bytes",
    "Memory of the device: its total, what is used on it, and what this process' tensors take.",
    ("device", "kind"),
    registry=WORKER_REGISTRY,
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
