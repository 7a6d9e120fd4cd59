"""How answers with tools, grammars and reasoning are read, and what they are held to."""

from __future__ import annotations

import json

import llguidance
import pytest
from hagane.generation import grammars
from hagane.generation.answer_form import shape_answer
from hagane.generation.events import ReasoningDelta, TextDelta, ToolCallArguments, ToolCallStarted
from hagane.generation.tools import NO_TOOLS, Tools
from hagane.system.errors import InvalidRequestError
from hagane.text.tokenizer import Tokenizer

PLAIN, HERMES, UNKNOWN = "{{ x }}", "{{ tools }}<tool_call></tool_call>", "{{ tools }}"
THINKING = "<think></think>"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "now": {"type": "boolean"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = {"weather": SCHEMA, "stop": {"type": "object", "properties": {}}}
CALL = '{"name": "weather", "arguments": {"city": "京"}}'


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir):
    return Tokenizer.load(tiny_model_dir)


@pytest.fixture(scope="module")
def accepts(tokenizer):
    """Whether a grammar accepts a whole text."""
    vocabulary = llguidance.LLTokenizer(tokenizer.to_json())

    def check(grammar, text: str) -> bool:
        matcher = llguidance.LLMatcher(vocabulary, grammar.text, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        ids = tokenizer.encode(text, add_special_tokens=False)
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    return check


def read(answer, text):
    """(reasoning, text, calls) of an answer that comes letter by letter."""
    chain = answer.make_chain()
    events = [event for letter in text for event in chain.feed(letter)] + chain.finish()
    calls = [[e.name, ""] for e in events if isinstance(e, ToolCallStarted)]
    for event in events:
        if isinstance(event, ToolCallArguments):
            calls[event.index][1] += event.text
    reasoning = "".join(e.text for e in events if isinstance(e, ReasoningDelta))
    return reasoning, "".join(e.text for e in events if isinstance(e, TextDelta)), calls


def framed(call):
    return f"<tool_call>\n{call}\n</tool_call>"


def test_required_calls_in_the_model_s_own_notation(tokenizer, accepts):
    answer = shape_answer(HERMES, "", tokenizer, Tools(TOOLS, required=True), None)
    assert accepts(answer.grammar, framed(CALL))
    assert accepts(
        answer.grammar, framed(CALL) + "\n" + framed('{"name": "stop", "arguments": {}}')
    )
    assert not accepts(answer.grammar, "It rains.")
    assert not accepts(answer.grammar, framed(CALL.replace("city", "town")))
    assert not accepts(answer.grammar, framed(CALL.replace("weather", "fly")))
    assert read(answer, framed(CALL)) == ("", "", [["weather", '{"city": "京"}']])


def test_required_calls_where_the_notation_is_not_known(tokenizer, accepts):
    answer = shape_answer(UNKNOWN, "", tokenizer, Tools(TOOLS, required=True), None)
    assert accepts(answer.grammar, f"[{CALL}, {CALL}]")
    assert read(answer, f"[{CALL}, {CALL}]")[2] == [["weather", '{"city": "京"}']] * 2
    one = shape_answer(UNKNOWN, "", tokenizer, Tools(TOOLS, required=True, parallel=False), None)
    assert accepts(one.grammar, f"[{CALL}]")
    assert not accepts(one.grammar, f"[{CALL}, {CALL}]")


def test_an_answer_may_follow_a_grammar_or_call(tokenizer, accepts):
    number = grammars.from_json_schema({"type": "integer"}, "response_format")
    answer = shape_answer(HERMES, "", tokenizer, Tools(TOOLS), number)
    assert accepts(answer.grammar, "42")
    assert accepts(answer.grammar, framed(CALL))
    assert not accepts(answer.grammar, "no")
    with pytest.raises(InvalidRequestError, match="tool_choice") as refused:
        shape_answer(UNKNOWN, "", tokenizer, Tools(TOOLS), number)
    assert refused.value.param == "response_format"


@pytest.mark.parametrize("tools", [NO_TOOLS, Tools(TOOLS, required=True)])
def test_reasoning_that_has_begun_comes_before_what_is_asked_for(tokenizer, accepts, tools):
    number = grammars.from_json_schema({"type": "integer"}, "p")
    wanted = framed(CALL) if tools.required else "42"
    template = THINKING + (HERMES if tools.required else PLAIN)
    begun = shape_answer(template, "x<think>\n", tokenizer, tools, number)
    assert accepts(begun.grammar, f"Hm <b>.\n</think>\n\n{wanted}")
    assert not accepts(begun.grammar, "Hm.</think>\n\nyes")
    reasoning, text, calls = read(begun, f"Hm <b>.\n</think>\n\n{wanted}")
    assert reasoning == "Hm <b>."
    assert (text, len(calls)) == (("", 1) if tools.required else ("42", 0))
    fresh = shape_answer(template, "x", tokenizer, tools, number)
    assert accepts(fresh.grammar, wanted)


def test_no_tools_leave_calls_as_text(tokenizer):
    answer = shape_answer(HERMES, "", tokenizer, NO_TOOLS, None)
    assert answer.grammar is None
    assert read(answer, framed(CALL)) == ("", framed(CALL), [])


def test_bare_calls_of_known_tools_are_calls(tokenizer):
    answer = shape_answer(HERMES, "", tokenizer, Tools(TOOLS), None)
    assert read(answer, CALL)[2] == [["weather", '{"city": "京"}']]
    other = json.dumps({"name": "Ada", "arguments": {}})
    assert read(answer, other) == ("", other, [])
    fenced = f"```json\n{CALL}\n```"
    assert read(answer, fenced) == ("", "", [["weather", '{"city": "京"}']])
    # An answer that follows a grammar may look like a call; calls have their markers then.
    free = grammars.from_json_schema({"type": "object"}, "response_format")
    answer = shape_answer(HERMES, "", tokenizer, Tools(TOOLS), free)
    assert read(answer, CALL) == ("", CALL, [])
    assert len(read(answer, framed(CALL))[2]) == 1
