"""Telemetry: the metrics, logs and traces of API and workers."""
