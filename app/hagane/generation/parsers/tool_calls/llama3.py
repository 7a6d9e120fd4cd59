"""Llama 3.1 and 3.3: the whole answer is `{"name": ..., "parameters": {...}}`.

Several objects are separated by `;`. `<|python_tag|>` may stand before them.
"""

from __future__ import annotations

import re

from hagane.generation.events import Event, TextDelta
from hagane.generation.notation import Notation
from hagane.generation.parsers.tool_calls.hermes import JsonCalls

_TAG = "<|python_tag|>"
_BEGINNING = re.compile(r'\{\s*"(?:type"\s*:\s*"function"\s*,\s*")?(?:name|function)"\s*:')
# An object that has not shown a name by then is an answer in JSON.
_LONGEST_BEGINNING = 64

LLAMA3 = Notation(
    ('{"name": "',),
    ('", "parameters": ',),
    ("}",),
    separator=("; ",),
    beginnings=r'\s*\{\s*"(type|name|function)"',
)


class Llama3Calls:
    """Calls if the answer begins with one, else text."""

    markers = (_TAG,)

    def __init__(self) -> None:
        self._buffer: str | None = ""
        self._calls: JsonCalls | None = None

    def feed(self, text: str) -> list[Event]:
        """The events of more text."""
        if self._calls is not None:
            return self._calls.feed(text)
        if self._buffer is None:
            return [TextDelta(text)]
        self._buffer += text
        start = self._buffer.lstrip()
        if not start or _TAG.startswith(start):
            return []
        start = start.removeprefix(_TAG).lstrip()
        if _BEGINNING.match(start):
            self._calls, self._buffer = JsonCalls(0), None
            return self._calls.feed(start)
        if not start or (start.startswith("{") and len(start) < _LONGEST_BEGINNING):
            return []
        text, self._buffer = self._buffer, None
        return [TextDelta(text)]

    def finish(self) -> list[Event]:
        """The text that was taken for the beginning of a call."""
        if self._calls is not None:
            return self._calls.finish()
        text, self._buffer = self._buffer, None
        return [TextDelta(text)] if text else []
