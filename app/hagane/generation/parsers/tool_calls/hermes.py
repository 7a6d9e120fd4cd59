"""Hermes, Qwen 2.5 and 3: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.

Granite 3 and Phi-4-mini write a list of such objects after a marker of their own, Mistral up to
v3 after `[TOOL_CALLS]`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from hagane.generation.events import Event
from hagane.generation.notation import Notation, Pieces
from hagane.generation.parsers.json_calls import JsonCall
from hagane.generation.parsers.tool_calls.delimited import DelimitedCalls

_OBJECT: tuple[Pieces, Pieces, Pieces] = (('{"name": "',), ('", "arguments": ',), ("}",))


def _list_between(opening: Pieces, closing: Pieces) -> Notation:
    before, between, after = _OBJECT
    return Notation(before, between, after, (*opening, "["), (", ",), ("]", *closing))


HERMES = Notation(
    ("<tool_call>", '\n{"name": "'), _OBJECT[1], ("}\n", "</tool_call>"), separator=("\n",)
)
GRANITE = _list_between(("<|tool_call|>",), ())
PHI4_MINI = _list_between(("<|tool_call|>",), ("<|/tool_call|>",))
MISTRAL_LIST = _list_between(("[TOOL_CALLS]", re.compile(" ?")), ())
JSON_LIST = _list_between((), ())


class JsonCalls:
    """One object, or a list of objects; whatever stands between them is skipped.

    It reads what stands between markers, and is a parser of answers that are nothing but calls.
    """

    markers: Sequence[str] = ()

    def __init__(self, count: int) -> None:
        self.count = count
        self._call: JsonCall | None = None

    def feed(self, text: str) -> list[Event]:
        """The events of more text."""
        events: list[Event] = []
        while text:
            if self._call is None:
                place = text.find("{")
                if place < 0:
                    break
                text = text[place:]
                self._call = JsonCall(self.count)
            found, text = self._call.feed(text)
            events += found
            if self._call.done:
                self.count += self._call.name is not None
                self._call = None
        return events

    def finish(self) -> list[Event]:
        """A call that was cut short counts if its name was there."""
        if self._call is not None and self._call.name is not None:
            self.count += 1
        self._call = None
        return []


def hermes() -> DelimitedCalls:
    """Hermes 2 and 3, Qwen 2.5 and 3, and many fine-tunes."""
    return DelimitedCalls("<tool_call>", "</tool_call>", JsonCalls)


def granite() -> DelimitedCalls:
    """Granite 3: a list of objects to the end of the answer."""
    return DelimitedCalls("<|tool_call|>", None, JsonCalls)


def phi4_mini() -> DelimitedCalls:
    """Phi-4-mini: a list of objects between markers."""
    return DelimitedCalls("<|tool_call|>", "<|/tool_call|>", JsonCalls)
