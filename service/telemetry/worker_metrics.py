"""Metrics of a worker process. They are always counted, and shown where BESTOFN_METRICS_PORT is set."""

from collections.abc import Callable

from prometheus_client import Counter, Gauge, Histogram, Info

from bestofn.service.telemetry.registry import new_registry

REGISTRY = new_registry()

WORKER = Info("bestofn_worker", "Device, model and judge of this worker.", registry=REGISTRY)
SLOTS = Gauge("bestofn_slots", "Candidates that the device denoises together.", registry=REGISTRY)
BATCH_FILL = Histogram(
    "bestofn_batch_fill_ratio",
    "Slots that a forward of the transformer advanced, of all slots.",
    buckets=(0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0),
    registry=REGISTRY,
)
TICK_SECONDS = Histogram(
    "bestofn_tick_seconds",
    "Time of one turn of the engine: a forward, and the decoding and judging that became due.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
    registry=REGISTRY,
)
STAGE_SECONDS = Counter(
    "bestofn_stage_seconds", "Device time of finished heats by stage.", ("stage",), registry=REGISTRY
)
TFLOPS = Counter("bestofn_tflops", "Work of finished heats, in TFLOP.", registry=REGISTRY)
CANDIDATES = Counter("bestofn_candidates_generated", "Candidates drawn and judged.", registry=REGISTRY)
WASTED = Counter(
    "bestofn_candidates_wasted",
    "Candidates drawn and judged whose heat was not stored, by outcome.",
    ("outcome",),
    registry=REGISTRY,
)
VERDICTS = Counter("bestofn_judge_verdicts", "Verdicts by the judge's answer.", ("answer",), registry=REGISTRY)
INVALID = Counter("bestofn_judge_invalid", "Verdicts whose logits were not finite numbers.", registry=REGISTRY)
PROMPT_HITS = Counter("bestofn_prompt_cache_hits", "Prompt contexts found in the cache.", registry=REGISTRY)
PROMPT_MISSES = Counter("bestofn_prompt_cache_misses", "Prompt contexts encoded.", registry=REGISTRY)
OUT_OF_MEMORY = Counter("bestofn_oom", "Batches that did not fit into memory.", ("stage",), registry=REGISTRY)
UNRECORDED = Counter(
    "bestofn_unrecorded_forwards",
    "Forwards that no CUDA graph could be made of, so that they run slower.",
    registry=REGISTRY,
)

HEATS = Counter(
    "bestofn_heats",
    "Heats that left this worker, by outcome: completed, duplicate, retried, dead_lettered or released.",
    ("outcome",),
    registry=REGISTRY,
)
HEAT_SECONDS = Histogram(
    "bestofn_heat_seconds",
    "Time from the claim of a heat to its filing.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320),
    registry=REGISTRY,
)
DEAD = Counter("bestofn_dead", "Heats given up for good, which fail their job.", registry=REGISTRY)
RECLAIMS = Counter("bestofn_reclaims", "Heats taken over from workers that are gone.", registry=REGISTRY)
DELIVERIES = Histogram(
    "bestofn_heat_deliveries",
    "How often a heat had been delivered when it was claimed; 1 is the first time.",
    buckets=(1, 2, 3, 4),
    registry=REGISTRY,
)
LEASES = Gauge("bestofn_leases_held", "Heats that this worker holds.", registry=REGISTRY)
LEASES_LOST = Counter("bestofn_leases_lost", "Leases that ran out while the heat was held.", registry=REGISTRY)
DEVICE_MEMORY = Gauge(
    "bestofn_device_memory_bytes",
    "Memory of the device: its total, what is used on it, and what this process' tensors take.",
    ("device", "kind"),
    registry=REGISTRY,
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
