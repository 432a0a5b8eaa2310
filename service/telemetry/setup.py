"""The start of a process' telemetry: its logs and its traces."""

from typing import Literal

from bestofn.service.core.settings import Settings
from bestofn.service.telemetry import logs, traces

Role = Literal["api", "worker"]


def start(settings: Settings, role: Role) -> None:
    """Sets up logs and traces of this process, once and before anything else."""
    logs.configure(settings)
    traces.configure(settings.otel_endpoint, f"bestofn-{role}")
