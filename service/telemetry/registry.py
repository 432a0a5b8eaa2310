"""Registries of metrics, one for each kind of process, and the buckets that they share."""

from prometheus_client import CollectorRegistry, Info, disable_created_metrics
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

from bestofn.service.core.version import VERSION

disable_created_metrics()  # type: ignore[no-untyped-call]  # no creation time for every counter

# Seconds: from an answer out of memory to a thousand candidates on a laptop.
LATENCY = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640, 1280)


def new_registry() -> CollectorRegistry:
    """A registry with the metrics of every process: version, memory, CPU time, open files."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    Info("bestofn_build", "Version of bestofn.", registry=registry).info({"version": VERSION})
    return registry
