"""langchain with langchain-openai: an agent, a structured model, embeddings by token ids."""

import harness
from langchain.agents import create_agent
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

ADDRESS = {"base_url": f"{harness.URL}/v1", "api_key": harness.KEY}
model = ChatOpenAI(model=harness.MODEL, temperature=0, max_tokens=80, **ADDRESS)


class Person(BaseModel):
    name: str
    age: int


def chat() -> str:
    return "".join(chunk.text for chunk in model.stream(harness.QUESTION))


def tools() -> str:
    agent = create_agent(model, [harness.get_weather])
    messages = [{"role": "user", "content": harness.WEATHER}]
    return agent.invoke({"messages": messages})["messages"][-1].text


def structured() -> tuple[str, int]:
    person = model.with_structured_output(Person).invoke(harness.PERSON)
    return person.name, person.age


def embeddings() -> list[float]:
    # Otherwise it sends the token ids of OpenAI's own vocabulary.
    options = {"check_embedding_ctx_length": False, **ADDRESS}
    return OpenAIEmbeddings(model=harness.MODEL, **options).embed_query("hello")


harness.run(
    ["langchain", "langchain-openai"],
    chat=chat, tools=tools, structured=structured, embeddings=embeddings,
)  # fmt: skip
