"""Collects what a step has to report and sends it as one message."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Protocol

import msgspec

from hagane.pool.messages import (
    EngineStats,
    FailureCode,
    FromEngine,
    Heartbeat,
    LogLines,
    RequestFailed,
    StepOutput,
    TokenDelta,
)
from hagane.system.logging import recent_lines

logger = logging.getLogger("hagane.engine.loop")


class Sender(Protocol):
    """The end of a channel that messages are sent on, such as `EngineChannel`.

    >>> sender.send(Heartbeat())
    """

    def send(self, message: FromEngine) -> None:
        """Raises BrokenPipeError when the other process is gone."""


class Outbox:
    """Deltas and failures of one step, and a heartbeat where there was nothing else to send.

    `heartbeat` is the longest time in seconds between two messages.
    """

    def __init__(self, channel: Sender, heartbeat: float) -> None:
        self._channel, self._heartbeat = channel, heartbeat
        self._failures: list[RequestFailed] = []
        self._reported: EngineStats | None = None
        self._sent_at = time.monotonic()

    def send(self, message: FromEngine) -> None:
        """Send one message now."""
        self._channel.send(message)
        self._sent_at = time.monotonic()

    def fail(self, request_id: str, code: FailureCode, message: str) -> None:
        """Report with the next `flush` that nothing more follows for a request."""
        logger.warning("%s: %s", code, message, extra={"request_id": request_id})
        self._failures.append(RequestFailed(request_id, code, message))

    def flush(self, deltas: Sequence[TokenDelta], stats: EngineStats) -> None:
        """Send what there is; only a heartbeat, when one is due, if nothing changed."""
        if lines := recent_lines().take():
            named = [msgspec.structs.replace(line, process="engine") for line in lines]
            self.send(LogLines(tuple(named)))
        if deltas or self._failures or stats != self._reported:
            self.send(StepOutput(deltas=tuple(deltas), failures=tuple(self._failures), stats=stats))
            self._failures.clear()
            self._reported = stats
        elif time.monotonic() - self._sent_at >= self._heartbeat:
            self.send(Heartbeat())
