"""Metrics of an API process: its requests. Metrics of the queue are read on demand (`queue_metrics`)."""

from prometheus_client import Counter, Gauge, Histogram

from bestofn.service.telemetry.registry import LATENCY, new_registry

REGISTRY = new_registry()

REQUESTS = Counter("bestofn_http_requests", "Requests answered.", ("method", "route", "status"), registry=REGISTRY)
REQUEST_SECONDS = Histogram(
    "bestofn_http_request_seconds",
    "Time to the end of an answer, waiting for jobs included.",
    ("method", "route"),
    buckets=LATENCY,
    registry=REGISTRY,
)
REFUSED = Counter("bestofn_refused", "Requests answered with an error, by its code.", ("code",), registry=REGISTRY)
WEBHOOKS = Counter("bestofn_webhooks", "Attempts at webhooks, by outcome.", ("outcome",), registry=REGISTRY)
EVENT_STREAMS = Gauge("bestofn_event_streams_open", "Event streams that are being sent.", registry=REGISTRY)
