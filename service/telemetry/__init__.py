"""Telemetry: the metrics, logs and traces of API and workers."""

from typing import Literal

import structlog

from bestofn.service.core.settings import Settings, misspelt
from bestofn.service.telemetry import logs, traces


def start(settings: Settings, role: Literal["api", "worker"]) -> None:
    """Set up logs and traces of this process, once and before anything else."""
    logs.configure(settings)
    traces.configure(settings.otel_endpoint, f"bestofn-{role}")
    for name, meant in misspelt().items():
        structlog.get_logger(__name__).warning(
            "a variable is not a setting and has no effect", variable=name, meant=meant
        )
