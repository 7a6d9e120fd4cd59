"""Logs and traces of every process: one line per event, with the request's id where there is one.

Traces are OpenTelemetry's and follow its environment variables; without an endpoint in them,
spans are objects that do nothing: https://opentelemetry.io/docs/specs/otel/protocol/exporter/
"""

from __future__ import annotations

import atexit
import json
import logging
import logging.handlers
import os
import queue
import sys
import threading
import time
from contextvars import ContextVar

from opentelemetry import trace

from hagane import __version__
from hagane.system.errors import ConfigurationError

request_id: ContextVar[str] = ContextVar("request_id", default="-")
tracer = trace.get_tracer("hagane", __version__)

_MOST_LINES_WAITING = 10_000
_FLUSH_SECONDS = 1.0
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


class _NeverWaiting(logging.handlers.QueueHandler):
    """Hands lines to a thread that writes them; drops and counts them where it cannot follow.

    A terminal that is paused, or a pipe that nobody reads, would otherwise stop every request.
    """

    def __init__(self, target: logging.Handler) -> None:
        lines: queue.Queue[logging.LogRecord] = queue.Queue(_MOST_LINES_WAITING)
        super().__init__(lines)
        self.dropped = 0
        self._reported = 0
        self._target = target
        self._lines = lines
        self._writer = threading.Thread(target=self._write, name="log", daemon=True)
        self._writer.start()
        atexit.register(self.flush)

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(record)
        except queue.Full:
            self.dropped += 1

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        # What the arguments say now is what happened; the writer's thread has no context.
        record.message = record.getMessage()
        record.msg, record.args = record.message, None
        return record

    def flush(self) -> None:
        """Wait until everything is written, but not for long: nobody may be reading."""
        deadline = time.monotonic() + _FLUSH_SECONDS
        while self._lines.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.005)

    def _write(self) -> None:
        while True:
            record = self._lines.get()
            try:
                self._target.handle(record)
                self._report_dropped()
            finally:
                self._lines.task_done()

    def _report_dropped(self) -> None:
        if (dropped := self.dropped) > self._reported:
            text = f"{dropped - self._reported} lines of the log were dropped: nobody read it"
            self._reported = dropped
            line = logging.LogRecord(__name__, logging.WARNING, "", 0, text, None, None)
            self._target.handle(line)


def dropped_lines() -> int:
    """Lines that this process could not write, since it began to log."""
    handlers = logging.getLogger().handlers
    return sum(handler.dropped for handler in handlers if isinstance(handler, _NeverWaiting))


def configure_logging(level: str = "INFO", style: str = "auto") -> None:
    """Log to standard error; `style` auto is pretty on a terminal and JSON elsewhere."""
    handler = logging.StreamHandler()
    if style == "json" or (style == "auto" and not sys.stderr.isatty()):
        handler.setFormatter(_JsonFormatter())
    else:
        pretty = "%(asctime)s %(levelname)-7s %(name)s [%(request_id)s] %(message)s"
        handler.setFormatter(logging.Formatter(pretty, "%H:%M:%S", defaults={"request_id": "-"}))
    queued = _NeverWaiting(handler)
    # Here, where the request's context is, and not in the thread that writes.
    queued.addFilter(_RequestId())
    logging.basicConfig(level=level.upper(), handlers=[queued], force=True)
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
