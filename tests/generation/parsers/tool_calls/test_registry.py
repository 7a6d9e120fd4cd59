"""Texts as the families write them, cut at every position."""

from __future__ import annotations

import json

import pytest
from hagane.generation.events import (
    ReasoningDelta,
    TextDelta,
    ToolCallArguments,
    ToolCallStarted,
)
from hagane.generation.parsers.base import Chain
from hagane.generation.parsers.harmony import HarmonyParser
from hagane.generation.parsers.reasoning import ReasoningParser
from hagane.generation.parsers.tool_calls.registry import (
    FORMATS,
    reasoning_parser,
    tool_format,
)

SCHEMAS = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "units": {"type": "object"},
        },
    }
}
WEATHER = ("get_weather", {"city": "東京", "days": 3})
TIME = ("get_time", {})
NOTATIONS = {notation.name: notation for notation in FORMATS}
BRACES = ("get_weather", {"city": 'a"}{[\\', "days": 1})


def whole(events):
    """Reasoning, text and calls of an answer, pieces joined."""
    reasoning = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    names = {event.index: event.name for event in events if isinstance(event, ToolCallStarted)}
    arguments = dict.fromkeys(names, "")
    for event in events:
        if isinstance(event, ToolCallArguments):
            arguments[event.index] += event.text
    assert list(names) == list(range(len(names)))
    return reasoning, text, [(names[i], json.loads(arguments[i])) for i in names]


def run(parser, pieces):
    events = [event for piece in pieces for event in parser.feed(piece)]
    return events + parser.finish()


def check(make, text, expected):
    """However the text is cut, the same comes of it."""
    assert whole(run(make(), [text])) == expected
    assert whole(run(make(), list(text))) == expected
    for place in range(1, len(text)):
        assert whole(run(make(), [text[:place], text[place:]])) == expected, text[:place]


def call(name, arguments, key="arguments"):
    return json.dumps({"name": name, key: arguments}, ensure_ascii=False)


HERMES = f"<tool_call>\n{call(*WEATHER)}\n</tool_call>"
TEXTS = [
    ("hermes", "Just text.", "Just text.", []),
    ("hermes", HERMES, "", [WEATHER]),
    ("hermes", f"Let me see. \n{HERMES}\n<tool_call>{call(*TIME)}</tool_call>",
     "Let me see.", [WEATHER, TIME]),
    ("hermes", f"<tool_call>{call(*BRACES)}</tool_call> Done.", " Done.", [BRACES]),
    ("hermes", '<tool_call>{"arguments": {"city": "東京", "days": 3}, "name": "get_weather"}'
     "</tool_call>", "", [WEATHER]),
    ("hermes", f"<tool_call>{json.dumps({'name': 'f', 'arguments': json.dumps({'a': 1})})}"
     "</tool_call>", "", [("f", {"a": 1})]),
    ("hermes", '<tool_call>{"name": "get_time"}</tool_call>', "", [TIME]),
    ("hermes", "1 < 2 <tool", "1 < 2 <tool", []),
    ("granite", f"<|tool_call|>[{call(*WEATHER)}, {call(*TIME)}]", "", [WEATHER, TIME]),
    ("phi4-mini", f"<|tool_call|>[{call(*WEATHER)}]<|/tool_call|>", "", [WEATHER]),
    ("mistral", f"[TOOL_CALLS][{call(*WEATHER)}, {call(*TIME)}]", "", [WEATHER, TIME]),
    ("mistral", "Wait.[TOOL_CALLS]get_weather[ARGS]" + json.dumps(WEATHER[1]) +
     "[TOOL_CALLS]get_time[CALL_ID]a1b2c3d4e[ARGS]{}", "Wait.", [WEATHER, TIME]),
    ("deepseek", "Hm.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"
     "```json\n" + json.dumps(WEATHER[1]) + "\n```<｜tool▁call▁end｜>\n"
     "<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_time\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
     "Hm.", [WEATHER, TIME]),
    ("deepseek", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
     + json.dumps(WEATHER[1]) + "<｜tool▁call▁end｜><｜tool▁calls▁end｜>", "", [WEATHER]),
    ("kimi", "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
     "<|tool_call_argument_begin|>" + json.dumps(WEATHER[1]) + "<|tool_call_end|>"
     "<|tool_call_begin|>functions.get_time:1<|tool_call_argument_begin|>{}<|tool_call_end|>"
     "<|tool_calls_section_end|>", "", [WEATHER, TIME]),
    ("qwen3-coder", "Ok.\n<tool_call>\n<function=get_weather>\n"
     "<parameter=city>\n東京\n</parameter>\n"
     "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>", "Ok.", [WEATHER]),
    ("qwen3-coder", "<tool_call>\n<function=get_time>\n</function>\n</tool_call>", "", [TIME]),
    ("qwen3-coder", "<tool_call><function=get_weather><parameter=city>12</parameter>"
     "<parameter=units>{\"t\": [1]}</parameter></function></tool_call>", "",
     [("get_weather", {"city": "12", "units": {"t": [1]}})]),
    ("glm4", "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>東京</arg_value>\n"
     "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>", "", [WEATHER]),
    ("glm4", "<tool_call>get_time</tool_call>", "", [TIME]),
    ("llama3", call(*WEATHER, key="parameters"), "", [WEATHER]),
    ("llama3", f"<|python_tag|>{call(*WEATHER)}; {call(*TIME)}", "", [WEATHER, TIME]),
    ("llama3", '{"type": "function", "name": "get_time", "parameters": {}}', "", [TIME]),
    ("llama3", "Hello {name}", "Hello {name}", []),
    ("llama3", '{"answer": 42}', '{"answer": 42}', []),
    ("llama4", "[get_weather(city='東京', days=3), get_time()]", "", [WEATHER, TIME]),
    ("llama4", "<|python_start|>[get_time()]<|python_end|>", "", [TIME]),
    ("llama4", "[1, 2] is a list", "[1, 2] is a list", []),
    ("llama4", "[get_time(", "[get_time(", []),
    ("llama4", "[f(__import__('os').system('x'))]", "[f(__import__('os').system('x'))]", []),
    ("gemma3", "See:\n```tool_code\nget_weather(city='東京', days=3)\nget_time()\n```",
     "See:", [WEATHER, TIME]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "said", "calls"), TEXTS)
def test_calls(name, text, said, calls):
    check(lambda: NOTATIONS[name].parser(SCHEMAS), text, ("", said, calls))


def test_every_format_is_tested():
    assert {name for name, *_ in TEXTS} | {"harmony", "pythonic"} == NOTATIONS.keys()


def test_a_call_that_was_cut_short_keeps_its_name_and_what_there_was():
    events = run(NOTATIONS["hermes"].parser({}), ['<tool_call>{"name": "f", "arguments": {"a'])
    assert events[0] == ToolCallStarted(0, "f")
    assert "".join(event.text for event in events[1:]) == '{"a'


def test_the_name_comes_at_once_and_arguments_as_they_come():
    parser = NOTATIONS["hermes"].parser({})
    assert parser.feed('<tool_call>{"name": "f"') == [ToolCallStarted(0, "f")]
    assert parser.feed(', "arguments": {"a": [1,') == [ToolCallArguments(0, '{"a": [1,')]


@pytest.mark.parametrize(
    ("text", "begun", "expected"),
    [
        ("<think>\nHm. So.\n</think>\n\nYes.", False, ("Hm. So.", "Yes.")),
        ("Hm.</think>Yes.", True, ("Hm.", "Yes.")),
        ("Yes. <think>", False, ("", "Yes. <think>")),
        ("<think>cut", False, ("cut", "")),
        ("<think></think>Yes.", False, ("", "Yes.")),
        ("<thin", False, ("", "<thin")),
        ("", True, ("", "")),
    ],
)
def test_reasoning(text, begun, expected):
    check(lambda: ReasoningParser("<think>", "</think>", begun=begun), text, (*expected, []))


def test_reasoning_before_calls():
    def make():
        return Chain([ReasoningParser("<think>", "</think>"), NOTATIONS["hermes"].parser({})])

    text = f"<think>I need <tool_call> now.</think>\n\nOne moment.\n{HERMES}"
    check(make, text, ("I need <tool_call> now.", "One moment.", [WEATHER]))


def test_harmony():
    text = (
        "<|channel|>analysis<|message|>Need it.<|end|><|start|>assistant<|channel|>commentary "
        "to=functions.get_weather <|constrain|>json<|message|>"
        + json.dumps(WEATHER[1])
        + "<|call|>"
    )
    check(HarmonyParser, text, ("Need it.", "", [WEATHER]))
    text = (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hi."
    )
    check(HarmonyParser, text, ("Hm.", "Hi.", []))
    check(HarmonyParser, text + "<|return|>", ("Hm.", "Hi.", []))


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("...<tool_call>\n{{ tool_call | tojson }}", "hermes"),
        ("<function=example><parameter=x> <tool_call>", "qwen3-coder"),
        ("{{ '[TOOL_CALLS]' }}", "mistral"),
        ("<|start_header_id|> <|eot_id|> {{ parameters }} ", "llama3"),
        ("<start_of_turn>", None),
    ],
)
def test_a_template_shows_its_notation(template, name):
    found = tool_format(template)
    assert (found.name if found else None) == name


def test_a_template_shows_its_reasoning():
    template = "{% if m.reasoning %}<think>...</think>{% endif %}"
    assert run(reasoning_parser(template, "<|im_start|>assistant\n<think>\n"), ["a</think>b"]) == [
        ReasoningDelta("a"), TextDelta("b"),
    ]  # fmt: skip
    assert reasoning_parser("no such thing", "") is None
