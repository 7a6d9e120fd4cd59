"""The Responses dialect as the stock client uses it, against a real server process."""

from __future__ import annotations

import json

import httpx
import jsonschema
import openai
import pytest
from pydantic import BaseModel

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo", "Bergen"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


@pytest.fixture(scope="module")
def client(tool_server):
    url = f"{tool_server.url}/v1"
    with openai.OpenAI(base_url=url, api_key="unused", max_retries=0) as opened:
        yield opened


def ask(client, given="Once upon", **fields):
    asked = {"max_output_tokens": 12, "temperature": 0, **fields}
    return client.responses.create(model="tiny", input=given, **asked)


def test_an_answer_and_its_counts(client):
    answer = ask(client, instructions="Be brief.", metadata={"a": "b"})
    assert answer.object == "response"
    assert answer.output_text
    assert answer.status in ("completed", "incomplete")
    usage = answer.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.output_tokens_details.reasoning_tokens == 0
    again = ask(client, instructions="Be brief.")
    assert again.output_text == answer.output_text
    assert again.usage.input_tokens_details.cached_tokens > 0
    assert answer.metadata == {"a": "b"}
    assert answer.instructions == "Be brief."


def test_a_stream_has_every_event_in_order(client):
    whole = ask(client)
    events = list(ask(client, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    deltas = kinds.count("response.output_text.delta")
    end = f"response.{whole.status}"
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * deltas,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        end,
    ]
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == whole.output_text == events[-1].response.output_text
    assert events[-1].response.usage.output_tokens == whole.usage.output_tokens
    assert whole.incomplete_details is None or whole.status == "incomplete"


class Point(BaseModel):
    x: bool
    y: bool


def test_parse_fills_the_model(client):
    parsed = client.responses.parse(model="tiny", input="A point", text_format=Point, temperature=0)
    assert isinstance(parsed.output_parsed, Point)
    with client.responses.stream(
        model="tiny", input="A point", text_format=Point, temperature=0
    ) as stream:
        final = stream.get_final_response()
    assert final.output_parsed == parsed.output_parsed


def test_a_tool_is_called_and_its_result_read(client):
    first = ask(client, tools=[WEATHER], tool_choice="required", max_output_tokens=150)
    (call,) = [item for item in first.output if item.type == "function_call"][:1]
    jsonschema.validate(json.loads(call.arguments), WEATHER["parameters"])
    assert call.name == "get_weather"
    assert call.call_id
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    chained = ask(client, [result], tools=[WEATHER], previous_response_id=first.id)
    whole = ask(
        client,
        [{"role": "user", "content": "Once upon"}, *[i.to_dict() for i in first.output], result],
        tools=[WEATHER],
    )
    assert chained.output_text == whole.output_text
    assert chained.usage.input_tokens == whole.usage.input_tokens
    assert chained.usage.input_tokens > first.usage.input_tokens


def test_a_streamed_call(client):
    events = list(
        ask(
            client,
            tools=[WEATHER],
            tool_choice={"type": "function", "name": "get_weather"},
            max_output_tokens=150,
            stream=True,
        )
    )
    kinds = list(dict.fromkeys(event.type for event in events))
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    (done,) = [e for e in events if e.type == "response.function_call_arguments.done"]
    pieces = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    assert "".join(pieces) == done.arguments
    assert len(pieces) > 1
    assert json.loads(done.arguments)["city"] in ("Oslo", "Bergen")


def test_stored_responses_are_read_listed_and_deleted(client):
    answer = ask(client)
    assert client.responses.retrieve(answer.id) == answer
    (item,) = client.responses.input_items.list(answer.id).data
    assert (item.role, item.content[0].text) == ("user", "Once upon")
    following = ask(client, "And then?", previous_response_id=answer.id)
    assert following.usage.input_tokens > answer.usage.input_tokens
    client.responses.delete(answer.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)
    with pytest.raises(openai.NotFoundError) as lost:
        ask(client, previous_response_id=answer.id)
    assert lost.value.param == "previous_response_id"
    unstored = ask(client, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unstored.id)


def test_items_can_be_referred_to(client):
    first = ask(client)
    (message,) = first.output
    told = [{"role": "user", "content": "Once upon"}]
    end = [{"role": "user", "content": "More"}]
    reference = [{"type": "item_reference", "id": message.id}]
    by_reference = ask(client, [*told, *reference, *end])
    by_value = ask(client, [*told, message.to_dict(), *end])
    assert by_reference.output_text == by_value.output_text
    assert by_reference.usage.input_tokens == by_value.usage.input_tokens


def test_a_conversation_grows_with_its_responses(client):
    conversation = client.conversations.create(
        metadata={"topic": "cats"},
        items=[{"type": "message", "role": "user", "content": "Hello"}],
    )
    first = ask(client, conversation=conversation.id)
    assert first.conversation.id == conversation.id
    items = client.conversations.items.list(conversation.id, order="asc").data
    assert [item.role for item in items] == ["user", "user", "assistant"]
    second = ask(client, "And?", conversation=conversation.id)
    assert second.usage.input_tokens > first.usage.input_tokens
    assert len(client.conversations.items.list(conversation.id).data) == 5
    assert client.conversations.items.retrieve(items[0].id, conversation_id=conversation.id).id
    client.conversations.items.delete(items[0].id, conversation_id=conversation.id)
    assert len(client.conversations.items.list(conversation.id).data) == 4
    client.conversations.update(conversation.id, metadata={"topic": "dogs"})
    assert client.conversations.retrieve(conversation.id).metadata == {"topic": "dogs"}
    client.conversations.delete(conversation.id)
    with pytest.raises(openai.NotFoundError):
        ask(client, conversation=conversation.id)


def test_background_responses_are_polled_followed_and_cancelled(client):
    long = {"max_output_tokens": 300, "background": True, "extra_body": {"ignore_eos": True}}
    queued = ask(client, **long)
    assert queued.status in ("queued", "in_progress")
    events = list(client.responses.retrieve(queued.id, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:3]] == [
        "response.created",
        "response.queued",
        "response.in_progress",
    ]
    done = client.responses.retrieve(queued.id)
    assert done.status == "incomplete"
    assert done.usage.output_tokens == 300
    resumed = client.responses.retrieve(queued.id, stream=True, starting_after=9)
    assert next(iter(resumed)).sequence_number == 10
    second = ask(client, **long)
    cancelled = client.responses.cancel(second.id)
    assert cancelled.status == "cancelled"
    assert client.responses.retrieve(second.id).status == "cancelled"
    foreground = ask(client)
    with pytest.raises(openai.BadRequestError):
        client.responses.cancel(foreground.id)


def test_a_long_conversation_is_cut_where_that_is_asked_for(client):
    turns = [{"role": "user", "content": f"{i} Once upon a time"} for i in range(60)]
    with pytest.raises(openai.BadRequestError) as long:
        ask(client, turns)
    assert long.value.code == "context_length_exceeded"
    assert long.value.param == "input"
    cut = ask(client, turns, truncation="auto")
    assert 350 < cut.usage.input_tokens <= 500


def test_logprobs_are_those_of_the_text(client):
    include = ["message.output_text.logprobs"]
    answer = ask(client, include=include, top_logprobs=2)
    part = answer.output[0].content[0]
    assert (
        b"".join(bytes(entry.bytes) for entry in part.logprobs)
        .decode(errors="replace")
        .startswith(part.text[:5])
    )
    assert all(len(entry.top_logprobs) == 2 for entry in part.logprobs)
    events = list(ask(client, include=include, top_logprobs=2, stream=True))
    streamed = next(e for e in events if e.type == "response.output_text.done").logprobs
    assert len(streamed) == len(part.logprobs)


def test_input_tokens_are_counted_without_an_answer(client):
    counted = client.responses.input_tokens.count(model="tiny", input="Once upon")
    assert counted.input_tokens == ask(client).usage.input_tokens


REFUSED = [
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
     "input[0].content[0]", "images"),
    ({"input": [{"type": "web_search_call", "id": "x"}]}, "input[0]", "web_search_call"),
    ({"tools": [{"type": "web_search"}]}, "tools[0]", "web_search"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "fly"}},
     "tool_choice", "fly"),
    ({"input": ""}, "input", "empty"),
    ({"background": True, "store": False}, "background", "store"),
    ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format", "schema"),
    ({"include": ["file_search_call.results"]}, "include[0]", "logprobs"),
    ({"top_logprobs": 2}, "top_logprobs", "include"),
    ({"prompt": {"id": "x"}}, "prompt", "stored prompts"),
    ({"input": [{"type": "item_reference", "id": "msg_0"}]}, "input[0].id", "msg_0"),
    ({"max_output_tokens": 0}, "max_output_tokens", "1"),
    ({"wrong": 1}, "wrong", "Unknown"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "words"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_not_possible_is_refused_by_name(tool_server, fields, param, words):
    body = {"model": "tiny", "input": "a", **fields}
    answer = httpx.post(f"{tool_server.url}/v1/responses", json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert words in error["message"]
