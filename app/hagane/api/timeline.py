"""When one prompt's tokens came: for the metrics as it happens, for the trace once it is over."""

from __future__ import annotations

import time
from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.util.types import AttributeValue

from hagane.api import tracing
from hagane.api.metrics import Metrics
from hagane.generation.events import Update
from hagane.generation.usage import Usage
from hagane.pool.messages import TokenDelta
from hagane.system.logging import tracer


class Timeline:
    """Observes queue, prefill and decode of one prompt, all of its continuations together."""

    def __init__(self, metrics: Metrics, usage: Usage) -> None:
        self._metrics = metrics
        self._usage = usage
        self._started = time.monotonic()
        self._queue_seconds = 0.0
        self._first: float | None = None
        self._latest: dict[int, float] = {}

    def started(self, prompt_tokens: int) -> None:
        self._started = time.monotonic()

    def tokens(self, delta: TokenDelta, update: Update) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
            self._queue_seconds = delta.queue_seconds
            self._metrics.time_to_first_token.observe(now - self._started)
            self._metrics.queue_time.observe(delta.queue_seconds)
        elif delta.index in self._latest:
            self._metrics.inter_token_latency.observe(now - self._latest[delta.index])
        self._latest[delta.index] = now

    def finished(self) -> None:
        self._metrics.end_to_end_latency.observe(time.monotonic() - self._started)

    def closed(self) -> None:
        """Spans of the phases below the request's own, as far as the request came."""
        if self._first is None:
            _span("queue", self._started, time.monotonic(), {})
            return
        scheduled = self._started + self._queue_seconds
        usage = self._usage
        read = {
            tracing.INPUT_TOKENS: usage.prompt_tokens,
            tracing.CACHED_TOKENS: usage.cached_tokens,
        }
        made = {tracing.OUTPUT_TOKENS: usage.completion_tokens}
        trace.get_current_span().set_attributes(read | made)
        _span("queue", self._started, scheduled, {})
        _span("prefill", scheduled, self._first, read)
        _span("decode", self._first, max(self._latest.values()), made)


def _span(name: str, start: float, end: float, attributes: Mapping[str, AttributeValue]) -> None:
    """A span between two moments of the monotonic clock."""
    # Spans are dated by the wall clock.
    offset = time.time() - time.monotonic()
    span = tracer.start_span(name, attributes=attributes, start_time=int((start + offset) * 1e9))
    span.end(int((end + offset) * 1e9))
