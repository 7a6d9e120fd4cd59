"""litellm, as a client of an OpenAI-compatible server."""

import json

import harness
import litellm
from pydantic import BaseModel

OPTIONS = {"model": f"openai/{harness.MODEL}", "api_base": f"{harness.URL}/v1",
           "api_key": harness.KEY, "temperature": 0, "max_tokens": 80}  # fmt: skip
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": harness.PARAMETERS}}


class Person(BaseModel):
    name: str
    age: int


def chat() -> str:
    messages = [{"role": "user", "content": harness.QUESTION}]
    return litellm.completion(messages=messages, **OPTIONS).choices[0].message.content


def tools() -> str:
    messages: list = [{"role": "user", "content": harness.WEATHER}]
    message = litellm.completion(messages=messages, tools=[TOOL], **OPTIONS).choices[0].message
    messages.append(message)
    for call in message.tool_calls:
        result = harness.get_weather(**json.loads(call.function.arguments))
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    options = {"tools": [TOOL], "tool_choice": "none", **OPTIONS}
    answer = litellm.completion(messages=messages, **options)
    return answer.choices[0].message.content


def structured() -> tuple[str, int]:
    messages = [{"role": "user", "content": harness.PERSON}]
    answer = litellm.completion(messages=messages, response_format=Person, **OPTIONS)
    person = Person.model_validate_json(answer.choices[0].message.content)
    return person.name, person.age


def embeddings() -> list[float]:
    options = {key: OPTIONS[key] for key in ("model", "api_base", "api_key")}
    return litellm.embedding(input=["hello"], **options).data[0]["embedding"]


harness.run(["litellm"], chat=chat, tools=tools, structured=structured, embeddings=embeddings)
