"""pydantic-ai: its agents over chat, Responses and Messages."""

import harness
from anthropic import AsyncAnthropic
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(base_url=f"{harness.URL}/v1", api_key=harness.KEY)
SETTINGS = {"temperature": 0.0, "max_tokens": 80}
models = [
    OpenAIChatModel(harness.MODEL, provider=provider),
    OpenAIResponsesModel(harness.MODEL, provider=provider),
    AnthropicModel(
        harness.MODEL,
        provider=AnthropicProvider(
            anthropic_client=AsyncAnthropic(base_url=harness.URL, api_key=harness.KEY)
        ),
    ),
]


class Person(BaseModel):
    name: str
    age: int


def chat() -> str:
    answers = [Agent(m, model_settings=SETTINGS).run_sync(harness.QUESTION).output for m in models]
    return min(answers, key=len)


def tools() -> str:
    agent = Agent(models[0], model_settings=SETTINGS, tools=[harness.get_weather])
    return agent.run_sync(harness.WEATHER).output


def structured() -> tuple[str, int]:
    agent = Agent(models[0], model_settings=SETTINGS, output_type=Person)
    person = agent.run_sync(harness.PERSON).output
    return person.name, person.age


harness.run(["pydantic-ai-slim"], chat=chat, tools=tools, structured=structured)
