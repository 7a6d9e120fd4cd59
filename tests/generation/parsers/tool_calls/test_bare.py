"""Calls without markers, cut at every position."""

from __future__ import annotations

import json

import pytest
from hagane.generation.events import TextDelta, ToolCallArguments, ToolCallStarted
from hagane.generation.parsers.base import Chain
from hagane.generation.parsers.tool_calls.bare import BareCalls
from hagane.generation.parsers.tool_calls.hermes import hermes

CALL = '{"name": "f", "arguments": {"a": "}{"}}'
PRETTY = '{\n  "name": "f",\n  "arguments": {\n    "a": "}{"\n  }\n}'
MARKED = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
FENCED = f"```json\n{PRETTY}\n```"
A = {"a": "}{"}
CALLS = [
    (CALL, "", [A]),
    (f" \n{CALL}\n", "", [A]),
    (CALL.replace("arguments", "parameters"), "", [A]),
    ('{"name": "f", "parameters": {}}', "", [{}]),
    (f"{CALL}\n{CALL}", "", [A, A]),
    (f"{CALL}, {CALL}", "", [A, A]),
    (f"{CALL}\n{MARKED}", "", [A, {}]),
    (f"{MARKED}\n{CALL}", "", [{}, A]),
    (f"{CALL}\n</tool_call>", "", [A]),
    (f"{CALL}\n\nIt rains.\n{MARKED}", "\n\nIt rains.", [A, {}]),
    (f"Let me see:\n{CALL}", "Let me see:", [A]),
    (FENCED, "", [A]),
    (f"```\n{CALL}\n```", "", [A]),
    (f"```json {CALL}```", "", [A]),
    (f"Well.\n\n{FENCED}\n\n{FENCED}\nThat is it.", "Well.\nThat is it.", [A, A]),
    (f"```json\n{CALL}\n{CALL}\n```", "", [A, A]),
    (f"```json\n[\n  {CALL},\n  {CALL}\n]\n```", "", [A, A]),
    (f"[{CALL}; {CALL}]", "", [A, A]),
    *((f"<{tag}>\n{CALL}\n</{tag}>", "", [A]) for tag in ("tools", "function_call", "response")),
    (f"<json>{CALL}", "", [A]),
    (f"```xml\n<tools>\n{PRETTY}\n</tools>\n```", "", [A]),
    (f"<tools>\n{CALL}\n</tool_call>", "", [A]),
    (f"```sh\nls\n```\n{CALL}", "```sh\nls\n```", [A]),
    (f"{FENCED}\n```sh\nls\n```\n{CALL}", "\n```sh\nls\n```", [A, A]),
    (
        f'{CALL}\n{{"name": "g", "type": "object"}}',
        '\n{"name": "g", "type": "object"}',
        [A],
    ),
    (MARKED, "", [{}]),
]
TEXTS = [
    '{"name": "g", "arguments": {}}',
    '{"name": "f"}',
    '{"name": "f", "arguments": "no object"}',
    '{"name": "f", "description": "x", "arguments": {}}',
    '{"name": "f", "parameters": {"type": "object", "properties": {}}}',
    '{"type": "function", "function": {"name": "f", "parameters": {}}}',
    '{"name": "f", "arguments":',
    f"Well: {CALL}",
    f'[1, 2]\n[see](there)\n{{"a": 1}} {CALL}',
    '```json\n{"name": "g", "arguments": {}}\n```',
    '```json\n{"name": "Ada", "age": 36}\n```\nThat is JSON.',
    f"```python\n# As in\n{CALL}\n```",
    f"```json\n{{\n  \"example\":\n{CALL}\n}}\n```",
    '```json\n{\n  "name": "f",\n  "argum',
    "```json\n",
    "<tools>\n<b>no</b>\n</tools>",
    "<tool",
    f"<example>{CALL}</example>",
    "{" + " " * 600 + CALL[1:],
    "```json" + " " * 600 + CALL,
    f"   - {CALL}",
]  # fmt: skip


def read(pieces):
    """(text, calls) of an answer that comes in these pieces."""
    chain = Chain([BareCalls(["f", "h"], ("<tool_call>", "</tool_call>")), hermes()])
    events = [event for piece in pieces for event in chain.feed(piece)] + chain.finish()
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    started = [event for event in events if isinstance(event, ToolCallStarted)]
    assert [(s.index, s.name) for s in started] == [(i, "f") for i in range(len(started))]
    found = [""] * len(started)
    for event in events:
        if isinstance(event, ToolCallArguments):
            found[event.index] += event.text
    return text, [json.loads(each) for each in found]


def check(text, expected):
    assert read([text]) == expected
    assert read(list(text)) == expected
    for place in range(1, len(text)):
        assert read([text[:place], text[place:]]) == expected, text[:place]


@pytest.mark.parametrize(("text", "answer", "arguments"), CALLS)
def test_calls_of_known_tools_however_they_are_wrapped(text, answer, arguments):
    check(text, (answer, arguments))


@pytest.mark.parametrize("text", TEXTS)
def test_anything_else_stays_as_written(text):
    check(text, (text, []))


def test_the_name_comes_at_once_and_arguments_as_they_come():
    chain = Chain([BareCalls(["f"], ("<tool_call>", "</tool_call>")), hermes()])
    assert chain.feed('So:\n```json\n{"name": "f", "arg') == [TextDelta("So:")]
    assert chain.feed('uments": {') == [ToolCallStarted(0, "f"), ToolCallArguments(0, "{")]
    assert chain.feed('"a": [1,') == [ToolCallArguments(0, '"a": [1,')]


def test_no_more_is_held_back_than_may_become_a_call():
    parser = BareCalls(["f"], ("<tool_call>", "</tool_call>"))
    assert parser.feed('{"name": "f') == []
    assert parser.feed("o") == [TextDelta('{"name": "fo')]
    assert parser.feed("\n```") == [TextDelta("\n")]
    assert parser.feed("python\n") == []
    assert parser.feed("import") == [TextDelta("```python\nimport")]
    assert parser.feed(' {"name') == [TextDelta(' {"name')]
