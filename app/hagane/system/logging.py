"""Logs and traces of every process: one line per event, with the request's id where there is one.

Traces are OpenTelemetry's and follow its environment variables; without an endpoint in them,
spans are objects that do nothing: https://opentelemetry.io/docs/specs/otel/protocol/exporter/
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
from contextvars import ContextVar

from opentelemetry import trace

from hagane import __version__
from hagane.system.errors import ConfigurationError
from hagane.system.installation import install_command
from hagane.system.recent_log import RecentLines

request_id: ContextVar[str] = ContextVar("request_id", default="-")
tracer = trace.get_tracer("hagane", __version__)

_MOST_LINES_WAITING = 10_000
_MOST_LINES_KEPT = 2_000
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


class _NeverWaiting(logging.Handler):
    """Hands lines to a thread that writes them; drops and counts them where it cannot follow.

    A terminal that is paused, or a pipe that nobody reads, would otherwise stop every request. The
    thread holds no lock while it waits, so that the process can end meanwhile.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.dropped = 0
        self._reported = 0
        self._descriptor = descriptor
        self._lines: queue.Queue[str] = queue.Queue(_MOST_LINES_WAITING)
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Format here, where the request's context is, and leave the writing to the thread."""
        try:
            if self._lines.full():
                raise queue.Full
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self.dropped += 1
        except Exception:  # the contract of handlers: a bad line must not fail its caller
            self.handleError(record)

    def flush(self) -> None:
        """Wait until everything is written, but not for long: nobody may be reading."""
        written = self._lines.all_tasks_done
        with written:
            written.wait_for(lambda: not self._lines.unfinished_tasks, _FLUSH_SECONDS)

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            try:
                self._write_line(line)
                if (dropped := self.dropped) > self._reported:
                    lost, self._reported = dropped - self._reported, dropped
                    self._write_line(f"{lost} lines of the log were dropped: nobody read it")
            except OSError:
                # The reader has gone for good; the metric shows it.
                self.dropped += 1
            finally:
                self._lines.task_done()

    def _write_line(self, line: str) -> None:
        rest = line.encode("utf-8", errors="backslashreplace") + b"\n"
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]


def dropped_lines() -> int:
    """Lines that this process could not write, since it began to log."""
    handlers = logging.getLogger().handlers
    return sum(handler.dropped for handler in handlers if isinstance(handler, _NeverWaiting))


_recent = RecentLines(_MOST_LINES_KEPT)


def recent_lines() -> RecentLines:
    """The last lines of this process, since it began to log."""
    return _recent


def configure_logging(level: str = "INFO", style: str = "auto") -> None:
    """Log to standard error; `style` auto is pretty on a terminal and JSON elsewhere."""
    try:
        descriptor = sys.stderr.fileno()
    except (OSError, ValueError):
        # A stand-in without a file, as some test runners have.
        descriptor = 2
    handler = _NeverWaiting(descriptor)
    handler.addFilter(_RequestId())
    if style == "json" or (style == "auto" and not sys.stderr.isatty()):
        handler.setFormatter(_JsonFormatter())
    else:
        pretty = "%(asctime)s %(levelname)-7s %(name)s [%(request_id)s] %(message)s"
        handler.setFormatter(logging.Formatter(pretty, "%H:%M:%S"))
    # Of the one that was filtered first, both have the request's id.
    logging.basicConfig(level=level.upper(), handlers=[handler, _recent], force=True)
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
            f"{endpoint} is set, which needs OpenTelemetry's SDK: {install_command('otel')}"
        ) from None
    # The environment (OTEL_SERVICE_NAME ...) takes precedence over this.
    os.environ.setdefault("OTEL_SERVICE_NAME", "hagane")
    provider = TracerProvider(resource=Resource.create({"service.version": __version__}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
