"""Calls between markers: the frame that most formats share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from hagane.generation.events import Event, TextDelta
from hagane.generation.parsers.base import find_marker, held_back


class CallBody(Protocol):
    """Reads what stands between the markers of a call, or of a list of calls.

    `feed` takes text as it comes; `count` is the number of calls begun, this body's included.

        body = JsonCalls(0)
        body.feed('{"name": "f", "argu')  # [ToolCallStarted(0, "f")]
    """

    @property
    def count(self) -> int: ...

    def feed(self, text: str) -> list[Event]: ...

    def finish(self) -> list[Event]: ...


class DelimitedCalls:
    """Text, and calls that stand between `opening` and `closing`.

    White space between text and a call belongs to neither. Without `closing` the calls go on to
    the end of the text. `body` makes the reader of one stretch of calls from the number of calls
    so far, `inner` are special tokens that it wants to see.
    """

    def __init__(
        self,
        opening: str,
        closing: str | None,
        body: Callable[[int], CallBody],
        inner: Sequence[str] = (),
    ) -> None:
        self.markers = (opening, *(() if closing is None else (closing,)), *inner)
        self._opening, self._closing, self._make = opening, closing, body
        self._body: CallBody | None = None
        self._count = 0
        self._buffer = ""

    def feed(self, text: str) -> list[Event]:
        """The events of more text."""
        self._buffer += text
        events: list[Event] = []
        while self._buffer:
            before = len(self._buffer)
            was_open = self._body is not None
            events += self._outside() if self._body is None else self._inside(self._body)
            if len(self._buffer) == before and (self._body is not None) == was_open:
                break
        return events

    def finish(self) -> list[Event]:
        """The text held back; a call that was cut short keeps what it had."""
        rest, self._buffer = self._buffer, ""
        if self._body is None:
            # White space after a call is not an answer.
            return [TextDelta(rest)] if rest.strip() or not self._count else []
        events = self._body.feed(rest) if rest else []
        return events + self._end(self._body)

    def _outside(self) -> list[Event]:
        found = find_marker(self._buffer, (self._opening,))
        if found is not None:
            place, _ = found
            text, self._buffer = self._buffer[:place], self._buffer[place + len(self._opening) :]
            self._body = self._make(self._count)
            return self._text(text.rstrip())
        free = len(self._buffer) - held_back(self._buffer, (self._opening,))
        # White space at the end may stand before a call.
        ready = self._buffer[:free].rstrip()
        self._buffer = self._buffer[len(ready) :]
        return self._text(ready)

    def _text(self, text: str) -> list[Event]:
        return [TextDelta(text)] if text.strip() else []

    def _inside(self, body: CallBody) -> list[Event]:
        closing = self._closing
        if closing is None:
            text, self._buffer = self._buffer, ""
            return body.feed(text)
        place = self._buffer.find(closing)
        if place >= 0:
            text, self._buffer = self._buffer[:place], self._buffer[place + len(closing) :]
            return (body.feed(text) if text else []) + self._end(body)
        free = len(self._buffer) - held_back(self._buffer, (closing,))
        text, self._buffer = self._buffer[:free], self._buffer[free:]
        return body.feed(text) if text else []

    def _end(self, body: CallBody) -> list[Event]:
        events = body.finish()
        self._count, self._body = body.count, None
        return events
