"""What calls look like while they are written, in the notation of each kind of model."""

from __future__ import annotations

import json
from typing import get_args

import llguidance
import pytest
from hagane.generation import grammars
from hagane.generation.answer_form import shape_answer
from hagane.generation.events import TextDelta, ToolCallArguments, ToolCallStarted
from hagane.generation.parsers.tool_calls.registry import FORMAT_NAMES
from hagane.generation.tools import NO_TOOLS, Tools
from hagane.system.errors import InvalidRequestError
from hagane.system.settings import ToolFormatName
from hagane.text.tokenizer import Tokenizer

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "unit": {"type": "string", "enum": ["C", "F"]},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = {"weather": WEATHER, "stop": {"type": "object", "properties": {}}}
ARGUMENTS = '{"city": "京 <b>", "days": 2}'
QWEN = (
    "<tool_call>\n<function=weather>\n<parameter=city>\n京 <b>\n</parameter>\n<parameter=days>\n2"
    "\n</parameter>\n</function>\n</tool_call>"
)
GLM = (
    "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>京 <b></arg_value>\n"
    "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>"
)
JSON_CALL = f'{{"name": "weather", "arguments": {ARGUMENTS}}}'
DEEPSEEK, DEEPSEEK_END = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
)
KIMI = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0"
    f"<|tool_call_argument_begin|>{ARGUMENTS}<|tool_call_end|><|tool_calls_section_end|>"
)
# (what a template shows, one call of weather in its notation)
CALLS = {
    "hermes": ("<tool_call>", f"<tool_call>\n{JSON_CALL}\n</tool_call>"),
    "granite": ("<|tool_call|>", f"<|tool_call|>[{JSON_CALL}]"),
    "phi4-mini": ("<|/tool_call|>", f"<|tool_call|>[{JSON_CALL}]<|/tool_call|>"),
    "mistral": ("[TOOL_CALLS]", f"[TOOL_CALLS] [{JSON_CALL}]"),
    "tekken": ("[TOOL_CALLS][ARGS]", f"[TOOL_CALLS]weather[ARGS]{ARGUMENTS}"),
    "deepseek-v3": (
        "<｜tool▁calls▁begin｜>```json",
        f"{DEEPSEEK}function<｜tool▁sep｜>weather\n```json\n{ARGUMENTS}\n```{DEEPSEEK_END}",
    ),
    "deepseek-v3.1": (
        "<｜tool▁calls▁begin｜>",
        f"{DEEPSEEK}weather<｜tool▁sep｜>{ARGUMENTS}{DEEPSEEK_END}",
    ),
    "kimi": ("<|tool_calls_section_begin|>", KIMI),
    "qwen3-coder": ("<function=<parameter=", QWEN),
    "glm4": ("<arg_key>", GLM),
    "llama3": ("<|python_tag|>", f'{{"name": "weather", "parameters": {ARGUMENTS}}}'),
}
MARKERS = (
    "<tool_call>", "</tool_call>", "<|tool_call|>", "<|/tool_call|>", "[TOOL_CALLS]", "[ARGS]",
    "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>", "<|tool_calls_section_begin|>", "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>", "<|tool_call_end|>", "<|tool_calls_section_end|>",
    "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "<think>", "</think>",
    "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>",
)  # fmt: skip


@pytest.fixture(scope="module", params=["markers are tokens", "markers are text"])
def tokenizer(request, tiny_model_dir, tmp_path_factory):
    if request.param == "markers are text":
        return Tokenizer.load(tiny_model_dir)
    folder = tmp_path_factory.mktemp("marked")
    content = json.loads((tiny_model_dir / "tokenizer.json").read_text())
    first = 1 + max(
        *content["model"]["vocab"].values(), *(each["id"] for each in content["added_tokens"])
    )
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    content["added_tokens"] += [
        {"id": first + i, "content": text, "special": True, **plain}
        for i, text in enumerate(MARKERS)
    ]
    for path in tiny_model_dir.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return Tokenizer.load(folder)


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
    """(text, calls) of an answer that comes letter by letter."""
    chain = answer.make_chain()
    events = [event for letter in text for event in chain.feed(letter)] + chain.finish()
    calls = [[e.name, ""] for e in events if isinstance(e, ToolCallStarted)]
    for event in events:
        if isinstance(event, ToolCallArguments):
            calls[event.index][1] += event.text
    return "".join(e.text for e in events if isinstance(e, TextDelta)), calls


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_has_begun_follows_its_schema(tokenizer, accepts, name):
    template, call = CALLS[name]
    answer = shape_answer(template, "", tokenizer, Tools(TOOLS), None)
    assert accepts(answer.grammar, "It rains.\nA <b>, {}")
    assert accepts(answer.grammar, call)
    assert not accepts(answer.grammar, call.replace("weather", "fly"))
    assert not accepts(answer.grammar, call.replace("days", "hours"))
    assert not accepts(answer.grammar, call.replace("2", '"two"'))
    text, calls = read(answer, call)
    assert (text, [each[0] for each in calls]) == ("", ["weather"])
    assert json.loads(calls[0][1]) == {"city": "京 <b>", "days": 2}
    if name != "llama3":
        assert accepts(answer.grammar, f"Let me see.\n{call}")


def test_calls_whose_markers_were_forgotten_follow_their_schemas(tokenizer, accepts):
    answer = shape_answer("<tool_call>", "", tokenizer, Tools(TOOLS), None)
    indented = json.dumps(json.loads(JSON_CALL), indent=2, ensure_ascii=False)
    fenced = f"Sure:\n```json\n{indented}\n```\nThat is all."
    assert accepts(answer.grammar, fenced)
    assert accepts(answer.grammar, JSON_CALL)
    for wrong in (("days", "hours"), ("2", '"two"'), ("2", "2, 3")):
        assert not accepts(answer.grammar, fenced.replace(*wrong))
    other = '{"name": "Ada", "arguments": 3, "age": 36}'
    assert accepts(answer.grammar, other)
    assert read(answer, fenced)[1][0][0] == "weather"


@pytest.mark.parametrize("name", CALLS)
def test_required_calls_are_written_in_the_models_notation(tokenizer, accepts, name):
    template, call = CALLS[name]
    answer = shape_answer(template, "", tokenizer, Tools(TOOLS, required=True), None)
    assert accepts(answer.grammar, call)
    assert not accepts(answer.grammar, "It rains.")
    assert not accepts(answer.grammar, f"Yes. {call}")
    assert [name for name, _ in read(answer, call)[1]] == ["weather"]


@pytest.mark.parametrize("name", ["qwen3-coder", "glm4"])
def test_arguments_written_one_by_one(tokenizer, accepts, name):
    template, call = CALLS[name]
    answer = shape_answer(template, "", tokenizer, Tools(TOOLS), None)
    key, value, end = ("<parameter=unit>\n", "C", "\n</parameter>\n")
    place = call.rindex("</")
    if name == "glm4":
        key, value, end = "<arg_key>unit</arg_key>\n<arg_value>", "C", "</arg_value>\n"
    else:
        place = call.index("</function>")
    with_unit = call[:place] + key + value + end + call[place:]
    assert accepts(answer.grammar, with_unit)
    assert json.loads(read(answer, with_unit)[1][0][1])["unit"] == "C"
    assert not accepts(answer.grammar, with_unit.replace(value + end, "K" + end))
    shaped = {"type": "object", "properties": {"day": {"type": "string", "pattern": "^.{3}$"}}}
    assert shape_answer(template, "", tokenizer, Tools({"f": shaped}), None).grammar is None
    with pytest.raises(InvalidRequestError, match="'pattern'"):
        shape_answer(template, "", tokenizer, Tools({"f": shaped}, strict=True), None)


def test_a_format_that_is_named_comes_before_the_template(tokenizer, accepts):
    _, call = CALLS["tekken"]
    answer = shape_answer("[ARGS]", "", tokenizer, Tools(TOOLS), None, tool_format="mistral")
    assert not accepts(answer.grammar, call.replace("weather", "fly"))
    assert read(answer, call)[1][0][0] == "weather"


def test_the_setting_knows_every_format():
    assert get_args(ToolFormatName) == FORMAT_NAMES


def test_reasoning_that_a_model_begins_itself(tokenizer, accepts):
    """It comes before what is asked for, or not at all, and has its budget."""
    number = grammars.from_json_schema({"type": "integer"}, "p")
    template = "<think></think>"
    ended = shape_answer(template, "<think>\n\n</think>\n\n", tokenizer, NO_TOOLS, number)
    assert ended.grammar == number
    assert shape_answer(template, "x", tokenizer, NO_TOOLS, None).grammar is None
    answer = shape_answer(template, "x", tokenizer, NO_TOOLS, number)
    assert accepts(answer.grammar, "42")
    assert not accepts(answer.grammar, "no")
    if tokenizer.added_id("<think>") is None:
        return
    assert accepts(answer.grammar, "<think>Hm, no.\n</think>\n\n42")
    assert not accepts(answer.grammar, "<think>Hm</think>no")
    bound = shape_answer(template, "x", tokenizer, NO_TOOLS, None, 3)
    assert accepts(bound.grammar, "Whatever it is.")
    assert accepts(bound.grammar, "<think>a b</think>Whatever it is.")
    assert not accepts(bound.grammar, "<think>one thought after the other, without an end</think>.")


HARMONY = "<|channel|><|message|>"
THOUGHT = "<|channel|>analysis<|message|>Hm.\n<|end|><|start|>assistant"
TO_WEATHER = "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"


def test_messages_with_channels(tokenizer, accepts):
    """gpt-oss thinks, and then calls or answers."""
    call, final = THOUGHT + TO_WEATHER + ARGUMENTS, THOUGHT + "<|channel|>final<|message|>"
    number = grammars.from_json_schema({"type": "integer"}, "response_format")
    if tokenizer.added_id("<|channel|>") is None:
        assert shape_answer(HARMONY, "", tokenizer, Tools(TOOLS), None).grammar is None
        return
    free = shape_answer(HARMONY, "", tokenizer, Tools(TOOLS), None)
    assert accepts(free.grammar, call)
    assert accepts(free.grammar, call.removeprefix(THOUGHT))
    assert accepts(free.grammar, final + "It rains.")
    assert not accepts(free.grammar, call.replace("days", "hours"))
    assert not accepts(free.grammar, call.replace("weather", "fly"))
    assert json.loads(read(free, call)[1][0][1])["days"] == 2
    must = shape_answer(HARMONY, "", tokenizer, Tools(TOOLS, required=True), None)
    assert accepts(must.grammar, call)
    assert not accepts(must.grammar, final + "It rains.")
    assert read(must, call)[1][0][0] == "weather"
    form = shape_answer(HARMONY, "", tokenizer, NO_TOOLS, number)
    assert accepts(form.grammar, final + "42")
    assert not accepts(form.grammar, final + "no")
    assert not accepts(form.grammar, "42")
    assert read(form, final + "42")[0] == "42"
    bound = shape_answer(HARMONY, "", tokenizer, NO_TOOLS, None, 4)
    assert accepts(bound.grammar, final + "Whatever.")
    assert not accepts(bound.grammar, final.replace("Hm.", "One thought after the other."))
    either = shape_answer(HARMONY, "", tokenizer, Tools(TOOLS), number)
    assert accepts(either.grammar, final + "42")
    assert accepts(either.grammar, call)
    assert not accepts(either.grammar, final + "It rains.")
