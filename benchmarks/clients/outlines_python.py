"""outlines over an OpenAI-compatible server."""

import harness
import openai
import outlines
from pydantic import BaseModel

client = openai.OpenAI(base_url=f"{harness.URL}/v1", api_key=harness.KEY)
model = outlines.from_openai(client, harness.MODEL)


class Person(BaseModel):
    name: str
    age: int


def chat() -> str:
    return model(harness.QUESTION, max_tokens=30)


def structured() -> tuple[str, int]:
    person = Person.model_validate_json(model(harness.PERSON, Person, max_tokens=80))
    return person.name, person.age


harness.run(["outlines"], chat=chat, structured=structured)
