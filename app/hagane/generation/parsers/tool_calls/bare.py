"""Calls whose markers a model forgot: small models of the Hermes notation often do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from hagane.generation.events import Event, TextDelta
from hagane.generation.parsers.json_calls import JsonCall

_LONGEST_HEAD = 256
# After a call: commas, and markers that were remembered late.
_BETWEEN = re.compile(r"(?:[\s,]|</?\w+>)*")


class BareCalls:
    """An answer that begins as an object with the name of a known tool is a call, and so are the
    next such objects; what else follows is text.

    It goes before the parser of calls with markers, which gets every other answer.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.markers: Sequence[str] = ()
        known = "|".join(map(re.escape, names))
        self._head = re.compile(
            rf'\s*\{{\s*"name"\s*:\s*"(?:{known})"\s*,\s*"(?:arguments|parameters)"\s*:'
        )
        self._buffer: str | None = ""
        self._call: JsonCall | None = None
        self._count = 0

    def feed(self, text: str) -> list[Event]:
        """The events of more text."""
        events: list[Event] = []
        while self._buffer is not None:
            if self._call is None:
                self._buffer += text
                skipped = _BETWEEN.match(self._buffer) if self._count else None
                held = self._buffer[skipped.end() if skipped else 0 :]
                if not self._head.match(held):
                    return events if self._may_begin(held) else events + self._release()
                self._call, text, self._buffer = JsonCall(self._count), held, ""
            found, text = self._call.feed(text)
            events += found
            if not self._call.done:
                return events
            self._call = None
            self._count += 1
        return [TextDelta(text)] if text else []

    def finish(self) -> list[Event]:
        """The text held back."""
        return self._release() if self._call is None else []

    def _may_begin(self, held: str) -> bool:
        beginnings = ("", "{", "<") if self._count else ("", "{")
        return held.lstrip()[:1] in beginnings and len(held) < _LONGEST_HEAD

    def _release(self) -> list[Event]:
        rest, self._buffer = self._buffer or "", None
        if self._count and _BETWEEN.fullmatch(rest):
            return []
        return [TextDelta(rest)] if rest else []
