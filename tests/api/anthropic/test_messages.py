"""The Messages dialect as the stock Anthropic client uses it, against a real server process."""

from __future__ import annotations

import json

import anthropic
import httpx
import jsonschema
import pytest

from tests.support.server import CHAT_KEY

MESSAGES = [{"role": "user", "content": "Is it raining?"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Bergen"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"name": "get_weather", "description": "Weather", "input_schema": SCHEMA}
ANY = {"type": "any", "disable_parallel_tool_use": True}


@pytest.fixture(scope="module")
def client(tool_server):
    with anthropic.Anthropic(base_url=tool_server.url, api_key="x", max_retries=0) as opened:
        yield opened


def asked(messages=MESSAGES, **fields):
    return {
        "model": "tiny", "messages": messages, "max_tokens": 12, "extra_body": {"seed": 1}, **fields
    }  # fmt: skip


def ask(client, messages=MESSAGES, **fields):
    return client.messages.create(**asked(messages, **fields))


def test_a_message_and_its_stream_are_the_same(client):
    whole = ask(client, system="Be brief.")
    assert whole.type == "message"
    assert whole.stop_reason in ("end_turn", "max_tokens")
    with client.messages.stream(**asked(system="Be brief.")) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens
    counted = client.messages.count_tokens(model="tiny", messages=MESSAGES, system="Be brief.")
    usage = ask(client, system="Be brief.").usage
    assert usage.cache_read_input_tokens > 0
    assert usage.input_tokens + usage.cache_read_input_tokens == counted.input_tokens


def test_events_are_named_and_in_order(tool_server):
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 5, "stream": True}
    answer = httpx.post(f"{tool_server.url}/v1/messages", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [event.split("\n") for event in answer.text.strip().split("\n\n")]
    names = [name.removeprefix("event: ") for name, _ in events]
    data = [json.loads(line.removeprefix("data: ")) for _, line in events]
    assert [each["type"] for each in data] == names
    deltas = names.count("content_block_delta")
    assert names == [
        "message_start",
        "ping",
        "content_block_start",
        *["content_block_delta"] * deltas,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


def test_a_tool_is_called_and_its_result_read(client):
    first = ask(client, tools=[TOOL], tool_choice=ANY, max_tokens=150)
    assert first.stop_reason == "tool_use"
    (call,) = first.content
    jsonschema.validate(call.input, SCHEMA)
    with client.messages.stream(**asked(tools=[TOOL], tool_choice=ANY, max_tokens=150)) as stream:
        pieces = [e.delta.partial_json for e in stream if e.type == "content_block_delta"]
        (streamed,) = stream.get_final_message().content
    assert streamed.input == call.input
    assert len(pieces) > 1
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "rain"}
    history = [
        *MESSAGES,
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result, {"type": "text", "text": "So?"}]},
    ]
    second = ask(client, history, tools=[TOOL])
    assert second.content
    alone = client.messages.count_tokens(model="tiny", messages=MESSAGES, tools=[TOOL])
    with_history = client.messages.count_tokens(model="tiny", messages=history, tools=[TOOL])
    assert with_history.input_tokens > alone.input_tokens
    none = ask(client, tools=[TOOL], tool_choice={"type": "none"})
    assert all(block.type == "text" for block in none.content)


def test_stop_sequences_are_named(client):
    text = ask(client, max_tokens=40).content[0].text
    stop = text[3:5]
    answer = ask(client, max_tokens=40, stop_sequences=["no such text", stop])
    assert answer.stop_reason == "stop_sequence"
    assert answer.stop_sequence == stop
    assert "".join(block.text for block in answer.content) == text[: text.index(stop)]


def test_a_last_message_of_the_assistant_is_continued(client):
    text = ask(client, max_tokens=40).content[0].text
    begun = [*MESSAGES, {"role": "assistant", "content": "Yes"}]
    plain = client.messages.count_tokens(model="tiny", messages=MESSAGES).input_tokens
    prefilled = client.messages.count_tokens(model="tiny", messages=begun).input_tokens
    assert plain < prefilled <= plain + 3
    assert ask(client, begun).content[0].text != text


def test_a_form_is_kept(client):
    config = {"format": {"type": "json_schema", "schema": SCHEMA}}
    answer = ask(client, max_tokens=60, extra_body={"output_config": config})
    jsonschema.validate(json.loads(answer.content[0].text), SCHEMA)


def test_keys_and_errors_are_in_the_dialects_shape(admin_server):
    def post(**headers) -> httpx.Response:
        body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 2}
        return httpx.post(f"{admin_server.url}/v1/messages", json=body, headers=headers)

    assert post(**{"x-api-key": CHAT_KEY}).status_code == 200
    assert post(authorization=f"Bearer {CHAT_KEY}").status_code == 200
    wrong = post(**{"x-api-key": "wrong"})
    assert wrong.status_code == 401
    assert wrong.json()["type"] == "error"
    assert wrong.json()["error"]["type"] == "authentication_error"
    with anthropic.Anthropic(base_url=admin_server.url, api_key=CHAT_KEY) as client:
        assert ("model", "tiny") in [(m.type, m.id) for m in client.models.list()]
        with pytest.raises(anthropic.NotFoundError) as missing:
            ask(client, model="other")
        assert missing.value.body["error"]["type"] == "not_found_error"
        with pytest.raises(anthropic.BadRequestError) as long:
            ask(client, [{"role": "user", "content": "Once upon " * 500}])
        assert "prompt is too long" in str(long.value)


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "x"}}
NEVER = {"type": "object", "properties": {"a": {"not": {}}}, "required": ["a"]}
REFUSED = [
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0]", "images"),
    ({"max_tokens": None}, "max_tokens", "integer"),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0]", "bash_20250124"),
    ({"tool_choice": {"type": "tool", "name": "fly"}, "tools": [TOOL]}, "tool_choice", "fly"),
    ({"tool_choice": {"type": "any"}}, "tool_choice", "no 'tools'"),
    ({"tools": [{**TOOL, "input_schema": NEVER, "strict": True}]}, "tools", "not"),
    ({"temperature": 3}, "temperature", "3"),
    ({"wrong": 1}, "wrong", "Unknown"),
    ({"messages": []}, "messages", "1 item"),
]


@pytest.mark.parametrize(("fields", "field", "words"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_not_possible_is_refused_by_name(tool_server, fields, field, words):
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 2, **fields}
    answer = httpx.post(f"{tool_server.url}/v1/messages", json=body)
    assert answer.status_code == 400, answer.text
    shown = answer.json()
    assert set(shown) == {"type", "error"}
    assert shown["error"]["type"] == "invalid_request_error"
    assert field in shown["error"]["message"]
    assert words in shown["error"]["message"]
