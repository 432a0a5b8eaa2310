"""Traces: one from a request through the queue to the heats that workers make of it."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from bestofn.service.core.version import VERSION
from bestofn.service.host.packages import installed

FLUSH_MS = 3000

_W3C = TraceContextTextMapPropagator()
_NEEDED = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


def configure(endpoint: str | None, service: str) -> None:
    """Sends this process' spans to an OTLP/HTTP collector, such as http://collector:4318.

    Nothing happens without an endpoint, or without the packages of the extra `trace`: the endpoint may be set for other
    programs of the machine.
    """
    if endpoint is None or not installed(*_NEEDED):
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": service, "service.version": VERSION})
    provider = TracerProvider(resource=resource)  # sampled as OTEL_TRACES_SAMPLER says; flushed when the process ends
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces")))
    trace.set_tracer_provider(provider)


def flush() -> None:
    """Sends what waits to be sent, for a process that a signal will end."""
    provider: Any = trace.get_tracer_provider()
    if hasattr(provider, "force_flush"):
        provider.force_flush(FLUSH_MS)


def traceparent() -> str:
    """The current span as a W3C header that another process can go on from; "" without one."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return carrier.get("traceparent", "")


@contextmanager
def past_span(
    name: str, parent: str, seconds: float, attributes: Mapping[str, str | int | float], error: str | None = None
) -> Iterator[Span]:
    """A span that lasted `seconds` and ends now, under the span that the header `parent` names ("": under none).

    It is the current one inside the `with`, so that lines that are logged there carry its trace.
    """
    now = time.time_ns()
    span = trace.get_tracer("bestofn", VERSION).start_span(
        name,
        context=_W3C.extract({"traceparent": parent}),
        kind=SpanKind.CONSUMER,
        attributes=attributes,
        start_time=now - int(1e9 * seconds),
    )
    if error is not None:
        span.set_status(Status(StatusCode.ERROR, error))
    with trace.use_span(span):
        yield span
    span.end(now)
