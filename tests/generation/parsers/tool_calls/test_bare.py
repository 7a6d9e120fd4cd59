"""Calls without markers, cut at every position."""

from __future__ import annotations

import json

import pytest
from hagane.generation.events import TextDelta, ToolCallArguments, ToolCallStarted
from hagane.generation.parsers.base import Chain
from hagane.generation.parsers.tool_calls.bare import BareCalls
from hagane.generation.parsers.tool_calls.hermes import hermes

CALL = '{"name": "f", "arguments": {"a": "}{"}}'
MARKED = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
CASES = [
    (CALL, "", ['{"a": "}{"}']),
    (f" \n{CALL}\n", "", ['{"a": "}{"}']),
    (f"{CALL}\n{CALL}", "", ['{"a": "}{"}'] * 2),
    (f"{CALL}\n{MARKED}", "", ['{"a": "}{"}', "{}"]),
    (
        CALL + '\n{"name": "g", "type": "object"}',
        '\n{"name": "g", "type": "object"}',
        ['{"a": "}{"}'],
    ),
    (f"{CALL}\n\nIt rains.", "\n\nIt rains.", ['{"a": "}{"}']),
    ('{"name": "g", "arguments": {}}', '{"name": "g", "arguments": {}}', []),
    ('{"name": "f"}', '{"name": "f"}', []),
    (f"Well: {CALL}", f"Well: {CALL}", []),
    (MARKED, "", ["{}"]),
    ("{" + " " * 400, "{" + " " * 400, []),
]


@pytest.mark.parametrize(("text", "answer", "arguments"), CASES)
def test_however_it_is_cut(text, answer, arguments):
    for pieces in ([text], list(text), [text[:7], text[7:]]):
        chain = Chain([BareCalls(["f", "h"]), hermes()])
        events = [event for piece in pieces for event in chain.feed(piece)] + chain.finish()
        assert "".join(e.text for e in events if isinstance(e, TextDelta)) == answer
        started = [event for event in events if isinstance(event, ToolCallStarted)]
        assert [(s.index, s.name) for s in started] == [(i, "f") for i in range(len(arguments))]
        found = dict.fromkeys(range(len(arguments)), "")
        for event in events:
            if isinstance(event, ToolCallArguments):
                found[event.index] += event.text
        assert list(found.values()) == arguments
        assert all(json.loads(each) is not None for each in arguments)
