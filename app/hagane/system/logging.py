"""Logs and traces of every process: one line per event, with the request's id where there is one.

Traces are OpenTelemetry's and follow its environment variables; without an endpoint in them,
spans are objects that do nothing: https://opentelemetry.io/docs/specs/otel/protocol/exporter/
"""

from __future__ import annotations

import json
import logging
import os
import sys
from contextvars import ContextVar

from opentelemetry import trace

from hagane import __version__
from hagane.system.errors import ConfigurationError

request_id: ContextVar[str] = ContextVar("request_id", default="-")
tracer = trace.get_tracer("hagane", __version__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class _RequestId(logging.Filter):
    """Lines of the engine bring the id along (`extra`): it runs many requests at a time."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "request_id"):
            record.request_id = request_id.get()
        return True


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": getattr(record, "request_id", "-"),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def configure_logging(level: str = "INFO", style: str = "auto") -> None:
    """Log to standard error; `style` auto is pretty on a terminal and JSON elsewhere."""
    handler = logging.StreamHandler()
    handler.addFilter(_RequestId())
    if style == "json" or (style == "auto" and not sys.stderr.isatty()):
        handler.setFormatter(_JsonFormatter())
    else:
        pretty = "%(asctime)s %(levelname)-7s %(name)s [%(request_id)s] %(message)s"
        handler.setFormatter(logging.Formatter(pretty, "%H:%M:%S"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for chatty in ("httpx", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def configure_tracing() -> None:
    """Send spans to the collector that the environment names, if it names one; until exit.

    Raises ConfigurationError when OpenTelemetry's SDK is not installed.
    """
    endpoint = next((name for name in _ENDPOINTS if os.environ.get(name)), None)
    if endpoint is None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise ConfigurationError(
            f"{endpoint} is set, but OpenTelemetry's SDK is not installed: "
            "pip install 'hagane[otel]'"
        ) from None
    # What the environment says about the service (OTEL_SERVICE_NAME ...) goes before this.
    os.environ.setdefault("OTEL_SERVICE_NAME", "hagane")
    provider = TracerProvider(resource=Resource.create({"service.version": __version__}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
