"""The anthropic package: Messages with tools, and a structured answer by its output format."""

import json

import harness
from anthropic import Anthropic

client = Anthropic(base_url=harness.URL, api_key=harness.KEY)
TOOL = {"name": "get_weather", "description": "The weather in a city now.",
        "input_schema": harness.PARAMETERS}  # fmt: skip


def ask(content: object, **options: object) -> object:
    messages = content if isinstance(content, list) else [{"role": "user", "content": content}]
    return client.messages.create(model=harness.MODEL, max_tokens=80, messages=messages, **options)


def chat() -> str:
    with client.messages.stream(
        model=harness.MODEL,
        max_tokens=30,
        messages=[{"role": "user", "content": harness.QUESTION}],
    ) as stream:
        return stream.get_final_message().content[0].text


def tools() -> str:
    messages: list = [{"role": "user", "content": harness.WEATHER}]
    options: dict = {"tools": [TOOL], "extra_body": {"temperature": 0}}
    choice = {"type": "any", "disable_parallel_tool_use": True}
    answer = ask(messages, tool_choice=choice, **options)
    messages.append({"role": "assistant", "content": answer.content})
    results = [
        {"type": "tool_result", "tool_use_id": b.id, "content": harness.get_weather(**b.input)}
        for b in answer.content
        if b.type == "tool_use"
    ]
    messages.append({"role": "user", "content": results})
    return ask(messages, tool_choice={"type": "none"}, **options).content[0].text


def structured() -> tuple[str, int]:
    form = {"type": "json_schema", "schema": harness.SCHEMA}
    person = json.loads(ask(harness.PERSON, output_config={"format": form}).content[0].text)
    return person["name"], person["age"]


harness.run(["anthropic"], chat=chat, tools=tools, structured=structured)
