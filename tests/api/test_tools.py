"""Tools over HTTP with the stock client, on a tiny model whose template writes calls as Hermes."""

from __future__ import annotations

import json

import httpx
import jsonschema
import openai
import pytest

from tests.support.tools import FENCED

MESSAGES = [{"role": "user", "content": "Is it raining?"}]
SCHEMAS = {
    "get_weather": {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo", "東京"]}, "days": {"type": "boolean"}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
    "stop-now": {"type": "object", "properties": {}, "additionalProperties": False},
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "x", "parameters": schema}}
    for name, schema in SCHEMAS.items()
]
NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture(scope="module")
def client(tool_server):
    url = f"{tool_server.url}/v1"
    with openai.OpenAI(base_url=url, api_key="unused", max_retries=0) as opened:
        yield opened


def ask(client, messages=MESSAGES, **fields):
    given = {"tools": TOOLS, "max_tokens": 150, "seed": 1, **fields}
    return client.chat.completions.create(model="tiny", messages=messages, **given)


def check(calls) -> None:
    assert calls
    assert len({call.id for call in calls}) == len(calls)
    for call in calls:
        assert call.type == "function"
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])


@pytest.mark.parametrize("choice", ["required", NAMED])
@pytest.mark.parametrize("several", [True, False])
def test_required_calls_are_made(client, choice, several):
    answer = ask(client, tool_choice=choice, n=4, parallel_tool_calls=several)
    for one in answer.choices:
        if one.finish_reason == "length":
            # A random model may go on calling.
            assert several
            assert choice == "required"
            continue
        assert one.finish_reason == "tool_calls"
        assert one.message.content is None
        check(one.message.tool_calls)
        if choice == NAMED or not several:
            assert len(one.message.tool_calls) == 1
        if choice == NAMED:
            assert one.message.tool_calls[0].function.name == "get_weather"


def test_a_stream_starts_a_call_at_once_and_loses_nothing(client):
    whole = ask(client, tool_choice=NAMED).choices[0].message.tool_calls
    names, arguments, reasons = {}, {}, []
    for chunk in ask(client, tool_choice=NAMED, stream=True):
        choice = chunk.choices[0]
        reasons.append(choice.finish_reason)
        for call in choice.delta.tool_calls or []:
            if call.function.name:
                assert call.id
                assert not call.function.arguments
                names[call.index] = call.function.name
            else:
                assert call.index in names, "arguments follow the name"
                pieces = arguments.setdefault(call.index, [])
                pieces.append(call.function.arguments)
    assert list(names.values()) == [call.function.name for call in whole]
    assert ["".join(arguments[i]) for i in names] == [call.function.arguments for call in whole]
    assert len(arguments[0]) > 1, "arguments come in pieces"
    assert [reason for reason in reasons if reason] == ["tool_calls"]


def test_an_answer_or_calls_where_both_are_allowed(client):
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "null"}}}
    answer = ask(client, response_format=form, n=16, temperature=2, parallel_tool_calls=False)
    kinds = set()
    for choice in answer.choices:
        kinds.add(choice.finish_reason)
        if choice.finish_reason == "stop":
            assert choice.message.content == "null"
            assert choice.message.tool_calls is None
        else:
            assert choice.finish_reason == "tool_calls"
            check(choice.message.tool_calls)
    assert kinds == {"stop", "tool_calls"}


def test_a_conversation_goes_on_after_calls(client):
    messages = list(MESSAGES)
    sizes = []
    for _ in range(2):
        answer = ask(client, messages, tool_choice=NAMED)
        sizes.append(answer.usage.prompt_tokens)
        message = answer.choices[0].message
        messages.append(message)
        messages += [
            {"role": "tool", "tool_call_id": call.id, "content": '{"rain": false}'}
            for call in message.tool_calls
        ]
    assert sizes[1] > sizes[0] + 20


def test_none_leaves_the_tools_out(client):
    without = ask(client, tools=openai.NOT_GIVEN)
    none = ask(client, tool_choice="none")
    assert none.choices[0].message == without.choices[0].message
    assert none.usage.prompt_tokens == without.usage.prompt_tokens
    assert ask(client, tool_choice="auto").usage.prompt_tokens > none.usage.prompt_tokens


ODD: dict = {"properties": []}
REFUSED = [
    ({"tool_choice": {"type": "function", "function": {"name": "fly"}}}, "tool_choice", "fly"),
    ({"tools": openai.NOT_GIVEN, "tool_choice": "required"}, "tool_choice", "no 'tools'"),
    ({"tools": [*TOOLS, TOOLS[0]]}, "tools", "same name"),
    ({"tools": [{"type": "web_search"}]}, "tools[0]", "web_search"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", ""),
    (
        {
            "tools": [
                {"type": "function", "function": {"name": "a", "parameters": {"properties": []}}}
            ]
        },
        "tools[0].function.parameters",
        "must be an object",
    ),
    ({"functions": [{"name": "a"}]}, "functions", "not both"),
    ({"tool_choice": "maybe"}, "tool_choice", "required"),
    (
        {
            "tools": [{"type": "function", "function": {"name": "a", "parameters": {"not": {}}}}],
            "tool_choice": "required",
        },
        "tools",
        "not",
    ),
]


@pytest.mark.parametrize(("fields", "param", "words"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_called_is_refused_by_name(client, fields, param, words):
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, **fields)
    assert refused.value.param == param
    assert words in str(refused.value)


ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}


def test_allowed_tools_are_the_only_ones_called_and_shown(client):
    answer = ask(client, tool_choice=ALLOWED, n=4, parallel_tool_calls=False)
    for choice in answer.choices:
        (call,) = choice.message.tool_calls
        assert call.function.name == "get_weather"
    alone = ask(client, tools=TOOLS[:1], tool_choice="required", parallel_tool_calls=False)
    assert answer.usage.prompt_tokens == alone.usage.prompt_tokens


def test_older_functions_are_called_and_answered_in_their_own_words(client):
    functions = [tool["function"] for tool in TOOLS]
    asked = {"tools": openai.NOT_GIVEN, "functions": functions}
    named = {"function_call": {"name": "get_weather"}}
    choice = ask(client, **asked, **named).choices[0]
    assert choice.finish_reason == "function_call"
    assert choice.message.tool_calls is None
    call = choice.message.function_call
    assert call.name == "get_weather"
    jsonschema.validate(json.loads(call.arguments), SCHEMAS["get_weather"])
    pieces = [chunk.choices[0] for chunk in ask(client, **asked, **named, stream=True)]
    deltas = [c.delta.function_call for c in pieces if c.delta.function_call]
    assert deltas[0].name == "get_weather"
    assert "".join(delta.arguments for delta in deltas) == call.arguments
    assert pieces[-1].finish_reason == "function_call"
    history = [
        *MESSAGES,
        choice.message.model_dump(exclude_none=True),
        {"role": "function", "name": "get_weather", "content": "rain"},
    ]
    assert ask(client, history, **asked, function_call="none").choices[0].message.content


def test_a_template_without_tools_refuses_them(server):
    plain = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)
    with plain, pytest.raises(openai.BadRequestError) as refused:
        ask(plain)
    assert refused.value.param == "tools"
    assert "no tools" in str(refused.value)


@pytest.fixture(scope="module")
def marked(marked_server):
    url = f"{marked_server.url}/v1"
    with openai.OpenAI(base_url=url, api_key="unused", max_retries=0) as opened:
        yield opened


def test_a_call_that_the_model_begins_follows_its_schema(marked):
    opening = {"3": 100}
    answer = ask(marked, logit_bias=opening, n=8, parallel_tool_calls=False, max_tokens=200)
    for choice in answer.choices:
        assert choice.finish_reason == "tool_calls"
        check(choice.message.tool_calls)
    free = ask(marked, logit_bias={"3": -100}, max_tokens=30, temperature=0)
    plain = ask(marked, tool_choice="none", max_tokens=30, temperature=0)
    assert free.choices[0].message.tool_calls is None
    assert plain.choices[0].message.content
    # Schemas that cannot be enforced are refused with strict, else left to the model.
    never = {"type": "object", "properties": {"a": {"not": {}}}, "required": ["a"]}
    odd = {"name": "odd", "parameters": never}
    loose = [{"type": "function", "function": odd}]
    assert ask(marked, tools=loose, max_tokens=5).choices
    strict = [{"type": "function", "function": {**odd, "strict": True}}]
    with pytest.raises(openai.BadRequestError) as refused:
        ask(marked, tools=strict)
    assert "not" in str(refused.value)


def test_a_call_in_a_fence_is_a_call_where_there_are_tools(marked):
    address = str(marked.base_url).replace("/v1/", "/tokenize")
    (token,) = httpx.post(address, json={"prompt": FENCED}).json()["tokens"]
    fenced = {"logit_bias": {str(token): 100}, "max_tokens": 2, "temperature": 0}
    for several in (True, False):
        choice = ask(marked, parallel_tool_calls=several, **fenced).choices[0]
        assert choice.finish_reason == ("length" if several else "tool_calls")
        assert choice.message.content is None
        calls = [(c.function.name, c.function.arguments) for c in choice.message.tool_calls]
        assert calls == [("get_weather", '{"city": "Oslo", "days": true}')] * (2 if several else 1)
    for without in ({"tool_choice": "none"}, {"tools": [TOOLS[1]]}):
        choice = ask(marked, **fenced, **without).choices[0]
        assert choice.message.content == FENCED * 2
        assert choice.message.tool_calls is None
    # One whose arguments do not follow the schema is never written.
    other = [{**TOOLS[0], "function": {**TOOLS[0]["function"], "parameters": SCHEMAS["stop-now"]}}]
    assert ask(marked, **fenced, tools=other).choices[0].message.tool_calls is None
    chunks = list(ask(marked, stream=True, parallel_tool_calls=False, **fenced))
    deltas = [call for c in chunks for call in c.choices[0].delta.tool_calls or []]
    assert deltas[0].function.name == "get_weather"
    assert "".join(d.function.arguments for d in deltas[1:]) == '{"city": "Oslo", "days": true}'
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_reasoning_ends_within_its_budget(marked):
    asked = {
        "tool_choice": "none", "max_tokens": 60, "logit_bias": {"6": -100, "2": -100},
        "extra_body": {"chat_template_kwargs": {"opening": "<think>"}},
    }  # fmt: skip
    endless = ask(marked, **asked)
    assert endless.choices[0].message.content == ""
    # The last tokens may be the beginning of a character.
    assert endless.usage.completion_tokens_details.reasoning_tokens >= 57
    asked["extra_body"] = {
        **asked["extra_body"],
        "thinking_token_budget": 10,
        "return_token_ids": True,
    }
    ended = ask(marked, **asked)
    assert ended.choices[0].message.content
    # The text between the markers; 6 is the closing one.
    assert ended.choices[0].token_ids.index(6) <= 10
    assert ended.choices[0].message.reasoning_content
