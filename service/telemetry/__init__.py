"""Telemetry: the metrics, logs and traces of API and workers."""

from typing import Literal

from bestofn.service.core.settings import Settings
from bestofn.service.telemetry import logs, traces


def start(settings: Settings, role: Literal["api", "worker"]) -> None:
    """Set up logs and traces of this process, once and before anything else."""
    logs.configure(settings)
    traces.configure(settings.otel_endpoint, f"bestofn-{role}")
