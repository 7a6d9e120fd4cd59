"""The openai package: chat and Responses, tools, parsed answers, embeddings."""

import json

import harness
from openai import OpenAI
from pydantic import BaseModel

client = OpenAI(base_url=f"{harness.URL}/v1", api_key=harness.KEY)
FUNCTION = {"name": "get_weather", "description": "The weather in a city now.",
            "parameters": harness.PARAMETERS}  # fmt: skip


class Person(BaseModel):
    name: str
    age: int


def chat() -> str:
    client.responses.create(model=harness.MODEL, input=harness.QUESTION, max_output_tokens=30)
    messages = [{"role": "user", "content": harness.QUESTION}]
    answer = client.chat.completions.create(model=harness.MODEL, messages=messages, max_tokens=30)
    return answer.choices[0].message.content


def tools() -> str:
    messages: list = [{"role": "user", "content": harness.WEATHER}]
    options = {"model": harness.MODEL, "temperature": 0, "max_tokens": 80}
    options["tools"] = [{"type": "function", "function": FUNCTION}]
    message = client.chat.completions.create(messages=messages, **options).choices[0].message
    messages.append(message)
    for call in message.tool_calls:
        result = harness.get_weather(**json.loads(call.function.arguments))
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    options["tool_choice"] = "none"
    return client.chat.completions.create(messages=messages, **options).choices[0].message.content


def structured() -> tuple[str, int]:
    answer = client.chat.completions.parse(
        model=harness.MODEL,
        messages=[{"role": "user", "content": harness.PERSON}],
        response_format=Person,
        max_tokens=80,
    )
    person = answer.choices[0].message.parsed
    return person.name, person.age


def embeddings() -> list[float]:
    return client.embeddings.create(model=harness.MODEL, input="hello").data[0].embedding


harness.run(["openai"], chat=chat, tools=tools, structured=structured, embeddings=embeddings)
