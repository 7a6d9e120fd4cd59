"""Calls written as Python: Llama 3.2 and 4 (`[f(a=1), g()]`) and Gemma 3 (```tool_code).

They are read with Python's own parser, never run: literals alone count as arguments.
"""

from __future__ import annotations

import ast
import json

from hagane.generation.events import Event, TextDelta, ToolCallArguments, ToolCallStarted
from hagane.generation.parsers.tool_calls.delimited import DelimitedCalls


def parse_calls(text: str) -> list[tuple[str, str]] | None:
    """Names and JSON arguments of a call or a list of calls; None if the text is something else."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        nodes = tree.elts if isinstance(tree, ast.List) else [tree]
        return [_call(node) for node in nodes] or None
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _call(node: ast.expr) -> tuple[str, str]:
    if not isinstance(node, ast.Call) or node.args or isinstance(node.func, ast.Call):
        raise ValueError("not a call with keywords alone")
    members = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError("** in a call")
        members[keyword.arg] = ast.literal_eval(keyword.value)
    return ast.unparse(node.func), json.dumps(members, ensure_ascii=False)


def _events(calls: list[tuple[str, str]], first: int) -> list[Event]:
    events: list[Event] = []
    for index, (name, arguments) in enumerate(calls, first):
        events += [ToolCallStarted(index, name), ToolCallArguments(index, arguments)]
    return events


class PythonicCalls:
    """An answer that is a list of calls as a whole; any other answer is text.

    An answer that begins with `[` and a name waits for its end, or for proof that it is text.
    """

    markers = ("<|python_start|>", "<|python_end|>")

    def __init__(self) -> None:
        self._buffer: str | None = ""

    def feed(self, text: str) -> list[Event]:
        """The events of more text."""
        if self._buffer is None:
            return [TextDelta(text)]
        self._buffer += text
        start = self._bare().lstrip()
        if not start or start == "[" or _may_be_calls(start):
            return []
        text, self._buffer = self._buffer, None
        return [TextDelta(text)]

    def finish(self) -> list[Event]:
        """The calls, or the text that was taken for calls."""
        if not self._buffer:
            return []
        calls = parse_calls(self._bare())
        text, self._buffer = self._buffer, None
        return [TextDelta(text)] if calls is None else _events(calls, 0)

    def _bare(self) -> str:
        text = self._buffer or ""
        for marker in self.markers:
            text = text.replace(marker, "")
        opening = self.markers[0]
        return "" if text and opening.startswith(text) else text


def _may_be_calls(start: str) -> bool:
    head, parenthesis, _ = start[1:].lstrip().partition("(")
    name = head.strip().replace(".", "_")
    return start.startswith("[") and (name.isidentifier() or (not parenthesis and not name))


class CodeCalls:
    """A body of DelimitedCalls: Python calls, one a line or in a list."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._text = ""

    def feed(self, text: str) -> list[Event]:
        """Nothing yet: Python is read as a whole."""
        self._text += text
        return []

    def finish(self) -> list[Event]:
        """The calls; code that is no call is dropped, as it was no text for the user either."""
        calls = parse_calls(self._text)
        if calls is None:
            lines = [parse_calls(line) for line in self._text.splitlines() if line.strip()]
            calls = [call for line in lines for call in line or []]
        events = _events(calls, self.count)
        self.count += len(calls)
        return events


def gemma3() -> DelimitedCalls:
    """Gemma 3: Python in a block of `tool_code`."""
    return DelimitedCalls("```tool_code\n", "```", CodeCalls)
