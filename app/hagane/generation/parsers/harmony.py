"""gpt-oss: messages with a channel each (https://github.com/openai/harmony).

`<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...`: the
channel `analysis` is reasoning, `final` the answer, and a recipient `to=functions.NAME` makes a
message a tool call. The prompt ends with `<|start|>assistant`, so that a text begins with a header.
"""

from __future__ import annotations

import re

from hagane.generation.events import (
    Event,
    ReasoningDelta,
    TextDelta,
    ToolCallArguments,
    ToolCallStarted,
)
from hagane.generation.parsers.base import find_marker, held_back

_MESSAGE = "<|message|>"
_ENDS = ("<|end|>", "<|return|>", "<|call|>", "<|start|>")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=(?:functions\.)?([\w.-]+)")


class HarmonyParser:
    """Reasoning, calls and answer of one text."""

    markers = ("<|start|>", "<|channel|>", "<|constrain|>", _MESSAGE, *_ENDS)

    def __init__(self) -> None:
        self._buffer = ""
        self._in_message = False
        self._channel = "final"
        self._call: int | None = None
        self._count = 0

    def feed(self, text: str) -> list[Event]:
        """The events of more text."""
        self._buffer += text
        events: list[Event] = []
        while True:
            marker = (_MESSAGE,) if not self._in_message else _ENDS
            found = find_marker(self._buffer, marker)
            if found is None:
                break
            place, name = found
            before, self._buffer = self._buffer[:place], self._buffer[place + len(name) :]
            events += self._content(before) if self._in_message else self._header(before)
            self._in_message = not self._in_message
        if self._in_message:
            free = len(self._buffer) - held_back(self._buffer, _ENDS)
            events += self._content(self._buffer[:free])
            self._buffer = self._buffer[free:]
        return events

    def finish(self) -> list[Event]:
        """The rest of the last message. A header that was cut short is dropped."""
        rest, self._buffer = self._buffer, ""
        if self._in_message:
            return self._content(rest)
        return [] if not rest or "<|" in rest or self._count else [TextDelta(rest)]

    def _header(self, text: str) -> list[Event]:
        channel, recipient = _CHANNEL.search(text), _RECIPIENT.search(text)
        self._channel = channel[1] if channel else "final"
        self._call = None
        if recipient is None:
            return []
        self._call = self._count
        self._count += 1
        return [ToolCallStarted(self._call, recipient[1])]

    def _content(self, text: str) -> list[Event]:
        if not text:
            return []
        if self._call is not None:
            return [ToolCallArguments(self._call, text)]
        if self._channel == "analysis":
            return [ReasoningDelta(text)]
        return [TextDelta(text)]
