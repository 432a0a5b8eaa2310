"""Logs: every line of a process, the libraries' too, as JSON or, at a terminal, as text; with request and trace ids."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog
from opentelemetry import trace
from structlog.typing import Processor

from bestofn.service.core.settings import Settings

_REQUESTS = "bestofn.requests"


def as_json(settings: Settings) -> bool:
    """Whether lines are JSON: where stderr is no terminal, unless the settings say otherwise."""
    return settings.log_format == "json" or (settings.log_format is None and not sys.stderr.isatty())


def configure(settings: Settings) -> None:
    """Sends all lines to stderr. In text there is not one line a request, except at the level "debug"."""
    json = as_json(settings)
    level = settings.log_level.upper()
    renderers: list[Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False)]
        if json
        # Without the values of variables, which rich would show: prompts may be among them.
        else [
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    logging.getLogger().addHandler(handler)
    logging.captureWarnings(True)
    logging.getLogger("bestofn").setLevel(level)
    if not json and level != "DEBUG":
        logging.getLogger(_REQUESTS).setLevel(logging.WARNING)
    structlog.configure(
        processors=_PROCESSORS,
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def request_log() -> structlog.stdlib.BoundLogger:
    """Takes one line a request. In a process that has not set up its logs it is silent, as Python's own logs are."""
    log: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        logging.getLogger(_REQUESTS), processors=_PROCESSORS, wrapper_class=structlog.stdlib.BoundLogger
    )
    return log


def _add_trace(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        event["trace_id"] = trace.format_trace_id(span.trace_id)
    return event


_SHARED: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper("iso", key="time"),
    _add_trace,
]
_PROCESSORS: list[Processor] = [
    structlog.stdlib.filter_by_level,
    *_SHARED,
    structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
]
