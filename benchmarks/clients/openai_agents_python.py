"""openai-agents by its defaults: the Responses API."""

import asyncio

import harness
from agents import Agent, ModelSettings, Runner, function_tool, set_tracing_disabled
from agents import set_default_openai_client as use
from openai import AsyncOpenAI
from pydantic import BaseModel

use(AsyncOpenAI(base_url=f"{harness.URL}/v1", api_key=harness.KEY))
set_tracing_disabled(True)
loop = asyncio.new_event_loop()
SETTINGS = ModelSettings(temperature=0, max_tokens=80)


class Person(BaseModel):
    name: str
    age: int


def ask(text: str, **options: object) -> object:
    agent = Agent(name="helper", model=harness.MODEL, model_settings=SETTINGS, **options)
    return loop.run_until_complete(Runner.run(agent, text, max_turns=4)).final_output


def chat() -> object:
    return ask(harness.QUESTION)


def tools() -> object:
    return ask(harness.WEATHER, tools=[function_tool(harness.get_weather)])


def structured() -> tuple[str, int]:
    person = ask(harness.PERSON, output_type=Person)
    return person.name, person.age


harness.run(["openai-agents"], chat=chat, tools=tools, structured=structured)
