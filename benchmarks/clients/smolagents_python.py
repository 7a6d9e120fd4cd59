"""smolagents: a model, and an agent that calls tools."""

import json

import harness
from smolagents import OpenAIModel, ToolCallingAgent, tool

model = OpenAIModel(
    model_id=harness.MODEL, api_base=f"{harness.URL}/v1", api_key=harness.KEY,
    temperature=0, max_tokens=120,
)  # fmt: skip


def messages(text: str) -> list:
    return [{"role": "user", "content": [{"type": "text", "text": text}]}]


def chat() -> str:
    return model(messages(harness.QUESTION)).content


def tools() -> object:
    agent = ToolCallingAgent(tools=[tool(harness.get_weather)], model=model, max_steps=3)
    return agent.run(harness.WEATHER)


def structured() -> tuple[str, int]:
    schema = {"name": "person", "schema": harness.SCHEMA, "strict": True}
    form = {"type": "json_schema", "json_schema": schema}
    person = json.loads(model(messages(harness.PERSON), response_format=form).content)
    return person["name"], person["age"]


harness.run(["smolagents"], chat=chat, tools=tools, structured=structured)
