"""Calls whose markers a model forgot: small models of the Hermes notation often do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from hagane.generation.events import Event, TextDelta
from hagane.generation.parsers.tool_calls.hermes import JsonCalls

_LONGEST_HEAD = 256


class BareCalls:
    """An answer that begins as an object with the name of a known tool is nothing but calls.

    It goes before the parser of calls with markers, which gets every other answer.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.markers: Sequence[str] = ()
        known = "|".join(map(re.escape, names))
        self._head = re.compile(
            rf'\s*\{{\s*"name"\s*:\s*"(?:{known})"\s*,\s*"(?:arguments|parameters)"\s*:'
        )
        self._buffer: str | None = ""
        self._calls: JsonCalls | None = None

    def feed(self, text: str) -> list[Event]:
        """The events of more text."""
        if self._calls is not None:
            return self._calls.feed(text)
        if self._buffer is None:
            return [TextDelta(text)]
        self._buffer += text
        if self._head.match(self._buffer):
            self._calls = JsonCalls(0)
            return self._calls.feed(self._buffer)
        if self._buffer.lstrip()[:1] in ("", "{") and len(self._buffer) < _LONGEST_HEAD:
            return []
        return self._release()

    def finish(self) -> list[Event]:
        """The text held back."""
        return self._release() if self._calls is None else self._calls.finish()

    def _release(self) -> list[Event]:
        rest, self._buffer = self._buffer, None
        return [TextDelta(rest)] if rest else []
