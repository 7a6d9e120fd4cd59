"""llama-index with its OpenAI-like parts: an agent, a structured model, embeddings."""

import asyncio

import harness
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

ADDRESS = {"api_base": f"{harness.URL}/v1", "api_key": harness.KEY}
model = OpenAILike(
    model=harness.MODEL, is_chat_model=True, is_function_calling_model=True,
    should_use_structured_outputs=True, temperature=0, max_tokens=80, context_window=4096,
    timeout=600, **ADDRESS,
)  # fmt: skip


class Person(BaseModel):
    name: str
    age: int


def chat() -> str:
    return model.chat([ChatMessage(role="user", content=harness.QUESTION)]).message.content


def tools() -> str:
    agent = FunctionAgent(tools=[harness.get_weather], llm=model)

    async def ask() -> str:
        return str(await agent.run(user_msg=harness.WEATHER))

    return asyncio.run(ask())


def structured() -> tuple[str, int]:
    message = ChatMessage(role="user", content=harness.PERSON)
    person = model.as_structured_llm(Person).chat([message]).raw
    return person.name, person.age


def embeddings() -> list[float]:
    return OpenAILikeEmbedding(model_name=harness.MODEL, **ADDRESS).get_text_embedding("hello")


harness.run(
    ["llama-index-core", "llama-index-llms-openai-like"],
    chat=chat, tools=tools, structured=structured, embeddings=embeddings,
)  # fmt: skip
