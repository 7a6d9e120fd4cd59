"""Calls whose name stands before the arguments: Mistral's Tekken, DeepSeek, Kimi K2.

The arguments are one JSON object and are passed on as they come.
"""

from __future__ import annotations

import re

from hagane.generation.events import Event, ToolCallArguments, ToolCallStarted
from hagane.generation.notation import Notation
from hagane.generation.parsers.json_calls import JsonValue
from hagane.generation.parsers.tool_calls.delimited import DelimitedCalls
from hagane.generation.parsers.tool_calls.hermes import MISTRAL_LIST, JsonCalls


class NamedCalls:
    """A head with the tool's name, then an object, again and again.

    `name` finds the name at the end of what stands before an object: the end of the last call, a
    code fence and the like come along. A first head of `[` alone begins the older notation, a list
    of objects with names.
    """

    def __init__(self, count: int, name: re.Pattern[str]) -> None:
        self.count = count
        self._name = name
        self._head = ""
        self._arguments: JsonValue | None = None
        self._list: JsonCalls | None = None

    def feed(self, text: str) -> list[Event]:
        """The events of more text."""
        events: list[Event] = []
        while text:
            if self._list is not None:
                events += self._list.feed(text)
                break
            if self._arguments is None:
                found, text = self._read_head(text)
            else:
                found, text = self._read_arguments(self._arguments, text)
            events += found
        return events

    def finish(self) -> list[Event]:
        """A call that was cut short keeps what it had; one without an object has no arguments."""
        if self._list is not None:
            events = self._list.finish()
            self.count = self._list.count
            return events
        if self._arguments is not None:
            self.count += 1
            return []
        match = self._name.search(self._head)
        if match is None:
            return []
        self.count += 1
        index = self.count - 1
        return [ToolCallStarted(index, match[1]), ToolCallArguments(index, "{}")]

    def _read_head(self, text: str) -> tuple[list[Event], str]:
        before, brace, after = text.partition("{")
        self._head += before
        if not brace:
            return [], ""
        head, self._head = self._head, ""
        if head.strip() == "[":
            self._list = JsonCalls(self.count)
            return [], brace + after
        match = self._name.search(head)
        if match is None:
            return [], after
        self._arguments = JsonValue()
        return [ToolCallStarted(self.count, match[1])], brace + after

    def _read_arguments(self, value: JsonValue, text: str) -> tuple[list[Event], str]:
        for place, letter in enumerate(text):
            value.take(letter)
            if value.complete:
                self._arguments = None
                self.count += 1
                piece, rest = text[: place + 1], text[place + 1 :]
                return [ToolCallArguments(self.count - 1, piece)], rest
        return [ToolCallArguments(self.count, text)], ""


_TEKKEN = Notation(("[TOOL_CALLS]",), ("[ARGS]",))
_DEEPSEEK_V3 = Notation(
    ("<｜tool▁call▁begin｜>", "function", "<｜tool▁sep｜>"),
    ("\n```json\n",),
    ("\n```", "<｜tool▁call▁end｜>"),
    ("<｜tool▁calls▁begin｜>",),
    ("\n",),
    ("<｜tool▁calls▁end｜>",),
)
_DEEPSEEK_V31 = Notation(
    ("<｜tool▁call▁begin｜>",),
    ("<｜tool▁sep｜>",),
    ("<｜tool▁call▁end｜>",),
    ("<｜tool▁calls▁begin｜>",),
    (),
    ("<｜tool▁calls▁end｜>",),
)
KIMI = Notation(
    ("<|tool_call_begin|>", "functions."),
    (":", re.compile("[0-9]+"), "<|tool_call_argument_begin|>"),
    ("<|tool_call_end|>",),
    ("<|tool_calls_section_begin|>",),
    (),
    ("<|tool_calls_section_end|>",),
)


def mistral_notation(template: str) -> Notation:
    """Tekken's where the template has its marker of arguments, else a list."""
    return _TEKKEN if "[ARGS]" in template else MISTRAL_LIST


def deepseek_notation(template: str) -> Notation:
    """With a fence around arguments (V3, R1) or without (V3.1)."""
    return _DEEPSEEK_V3 if "```json" in template else _DEEPSEEK_V31


_MISTRAL = re.compile(r"([\w.-]+)(?:\[CALL_ID\]\w+)?\[ARGS\]\s*$")
_DEEPSEEK = re.compile(
    r"(?:function<｜tool▁sep｜>|<｜tool▁call▁begin｜>)([\w.-]+)(?:\s*```json|<｜tool▁sep｜>)\s*$"
)
_KIMI = re.compile(r"(?:functions\.)?([\w.-]+?)(?::\d+)?\s*<\|tool_call_argument_begin\|>\s*$")


def mistral() -> DelimitedCalls:
    """Mistral: `[TOOL_CALLS]name[ARGS]{...}` (Tekken), or a list of objects (up to v3)."""
    return DelimitedCalls(
        "[TOOL_CALLS]",
        None,
        lambda count: NamedCalls(count, _MISTRAL),
        inner=("[ARGS]", "[CALL_ID]"),
    )


def deepseek() -> DelimitedCalls:
    """DeepSeek V3 and R1 (`function<sep>name`, a fenced object), V3.1 (`name<sep>{...}`)."""
    return DelimitedCalls(
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
        lambda count: NamedCalls(count, _DEEPSEEK),
        inner=("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"),
    )


def kimi() -> DelimitedCalls:
    """Kimi K2: `functions.NAME:0<|tool_call_argument_begin|>{...}`."""
    return DelimitedCalls(
        "<|tool_calls_section_begin|>",
        "<|tool_calls_section_end|>",
        lambda count: NamedCalls(count, _KIMI),
        inner=("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"),
    )
