"""Reasoning between two markers, as Qwen3, DeepSeek R1, GLM, Magistral and others write it."""

from __future__ import annotations

from hagane.generation.events import Event, ReasoningDelta, TextDelta
from hagane.generation.parsers.base import held_back


class ReasoningParser:
    """Splits what stands between `opening` and `closing` from the answer.

    Reasoning comes first or not at all: an opening marker after text is text. With `begun` the
    template has written the opening marker already, so that the text begins with reasoning.
    White space next to the markers belongs to neither part.
    """

    def __init__(self, opening: str, closing: str, *, begun: bool = False) -> None:
        self.markers = (opening, closing)
        self._opening, self._closing = opening, closing
        self._state = "reasoning" if begun else "start"
        self._buffer = ""
        self._blank = True  # white space alone since the last marker

    def feed(self, text: str) -> list[Event]:
        """The events of more text."""
        self._buffer += text
        if self._state == "start":
            self._open()
        events: list[Event] = []
        if self._state == "reasoning":
            events += self._reason()
        if self._state == "answer":
            events += self._answer()
        return events

    def finish(self) -> list[Event]:
        """The text held back: reasoning that was never closed stays reasoning."""
        rest, self._buffer = self._buffer, ""
        if self._state == "reasoning":
            return [ReasoningDelta(rest)] if rest.strip() else []
        return [TextDelta(rest)] if rest else []

    def _open(self) -> None:
        start = self._buffer.lstrip()
        if start.startswith(self._opening):
            self._state, self._buffer = "reasoning", start[len(self._opening) :]
        elif not self._opening.startswith(start):
            self._state, self._blank = "answer", False

    def _reason(self) -> list[Event]:
        if self._blank:
            self._buffer = self._buffer.lstrip()
        before, closing, after = self._buffer.partition(self._closing)
        if closing:
            self._state, self._buffer, self._blank = "answer", after, True
            before = before.rstrip()
            return [ReasoningDelta(before)] if before else []
        # White space at the end may stand before the closing marker.
        kept = self._buffer[: len(self._buffer) - held_back(self._buffer, (self._closing,))]
        ready = kept.rstrip()
        if not ready:
            return []
        self._blank, self._buffer = False, self._buffer[len(ready) :]
        return [ReasoningDelta(ready)]

    def _answer(self) -> list[Event]:
        if self._blank:
            self._buffer = self._buffer.lstrip()
        if not self._buffer:
            return []
        self._blank, text = False, self._buffer
        self._buffer = ""
        return [TextDelta(text)]
