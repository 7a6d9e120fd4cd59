"""Answers that look as they were asked for, over HTTP with the stock client."""

from __future__ import annotations

import json
import re

import jsonschema
import openai
import pydantic
import pytest

MESSAGES = [{"role": "user", "content": "Once upon a time"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["cat", "犬"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 30},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["kind", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as opened:
        yield opened


def chat(client, **fields) -> openai.types.chat.ChatCompletion:
    known = {"response_format", "n", "seed", "logprobs"}
    extra = {name: value for name, value in fields.items() if name not in known}
    plain = {name: value for name, value in fields.items() if name in known}
    return client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=200, extra_body=extra, **plain
    )


def named(schema: dict) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "pet", "schema": schema, "strict": True}}


SAME = [
    {"response_format": named(SCHEMA)},
    {"response_format": {"type": "json_object", "schema": SCHEMA}},
    {"structured_outputs": {"json": SCHEMA}},
    {"structured_outputs": {"json": json.dumps(SCHEMA)}},
    {"guided_json": SCHEMA},
    {"json_schema": SCHEMA},
]


@pytest.mark.parametrize("fields", SAME, ids=range(len(SAME)))
def test_every_way_to_send_a_schema_gives_what_validates(client, fields):
    answer = chat(client, **fields, n=4, seed=1)
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content), SCHEMA)


class Pet(pydantic.BaseModel):
    sound: bool
    legs: list[bool] = pydantic.Field(max_length=2)


def test_the_client_parses_into_its_own_classes(client):
    answer = client.beta.chat.completions.parse(
        model="tiny", messages=MESSAGES, response_format=Pet, max_tokens=100
    )
    assert isinstance(answer.choices[0].message.parsed, Pet)


def test_any_object(client):
    for fields in (
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"json_object": True}},
    ):
        text = chat(client, **fields, seed=5).choices[0].message.content
        assert text.startswith("{"), "an object, perhaps one that max_tokens cuts"


TAG = {
    "type": "tag",
    "begin": "<a>",
    "content": {"type": "regex", "pattern": "yes|no"},
    "end": "</a>",
}
WORDS = [
    ({"guided_regex": "[ab]{3}-[0-9]"}, "[ab]{3}-[0-9]"),
    ({"structured_outputs": {"regex": "[ab]{3}-[0-9]"}}, "[ab]{3}-[0-9]"),
    ({"guided_choice": ["yes", "いいえ"]}, "yes|いいえ"),
    ({"structured_outputs": {"choice": ["yes", "いいえ"]}}, "yes|いいえ"),
    ({"guided_grammar": 'start: "x" ("a" | "b") "y"'}, "x[ab]y"),
    ({"structured_outputs": {"grammar": 'start: "x" ("a" | "b") "y"'}}, "x[ab]y"),
    ({"grammar": 'root ::= "x" [ab] "y"'}, "x[ab]y"),
    ({"structured_outputs": {"structural_tag": {"format": TAG}}}, "<a>(yes|no)</a>"),
    ({"structured_outputs": {"structural_tag": json.dumps({"format": TAG})}}, "<a>(yes|no)</a>"),
    ({"response_format": {"type": "structural_tag", "format": TAG}}, "<a>(yes|no)</a>"),
]


@pytest.mark.parametrize(("fields", "pattern"), WORDS, ids=range(len(WORDS)))
def test_choices_expressions_and_grammars(client, fields, pattern):
    for choice in chat(client, **fields, n=3).choices:
        assert re.fullmatch(pattern, choice.message.content)
        assert choice.finish_reason == "stop"
    completion = client.completions.create(
        model="tiny", prompt="x", max_tokens=40, extra_body=fields
    )
    assert re.fullmatch(pattern, completion.choices[0].text)


def test_streams_hold_to_it_too(client):
    stream = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=200, stream=True, seed=1,
        response_format=named(SCHEMA),
    )  # fmt: skip
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    jsonschema.validate(json.loads(text), SCHEMA)
    assert text == chat(client, response_format=named(SCHEMA), seed=1).choices[0].message.content


def test_log_probabilities_come_for_every_token(client):
    choice = chat(client, guided_choice=["yes"], logprobs=True).choices[0]
    assert "".join(entry.token for entry in choice.logprobs.content) == "yes"


REFUSED = [
    ({"response_format": named({"type": "strin"})}, "response_format.json_schema.schema", "strin"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
    ({"guided_json": {"not": {}}}, "guided_json", "not"),
    ({"guided_json": "{"}, "guided_json", "not JSON"),
    ({"guided_regex": "("}, "guided_regex", "unclosed"),
    ({"guided_choice": []}, "guided_choice", "at least 1"),
    ({"guided_choice": [""]}, "guided_choice", "empty"),
    ({"grammar": "root ::= ("}, "grammar", "GBNF"),
    ({"grammar": '{"grammars": []}'}, "grammar", "Lark or GBNF"),
    ({"structured_outputs": {"color": "red"}}, "structured_outputs.color", "Unknown"),
    ({"guided_json": {}, "guided_regex": "a"}, "guided_regex", "give one of them"),
    ({"json_schema": {"x-guidance": {"lenient": True}}}, "json_schema", "x-guidance"),
    ({"guided_regex": "a" * 600_000}, "guided_regex", "smaller"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "words"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_enforced_is_refused_by_name(client, fields, param, words):
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, **fields)
    assert refused.value.param == param
    assert words in str(refused.value)


def test_a_grammar_that_fails_on_the_way_fails_its_own_request(client, server):
    with pytest.raises(openai.BadRequestError):
        chat(client, guided_regex="a{1000000}")
    assert chat(client, guided_choice=["yes"]).choices[0].message.content == "yes"
    assert server.metric("hagane_engine_restarts_total") == 0


def test_nothing_asked_for_changes_nothing(client, server):
    fields = {"response_format": {"type": "text"}, "guided_json": None, "structured_outputs": {}}
    assert chat(client, seed=2, **fields).choices == chat(client, seed=2).choices
    assert server.metric("hagane_engine_restarts_total") == 0
