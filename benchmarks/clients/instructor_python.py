"""instructor: structured answers by tools (its default) and by JSON schema."""

import harness
import instructor
from openai import OpenAI
from pydantic import BaseModel

plain = OpenAI(base_url=f"{harness.URL}/v1", api_key=harness.KEY)
MESSAGES = [{"role": "user", "content": harness.PERSON}]


class Person(BaseModel):
    name: str
    age: int


def structured() -> tuple[str, int]:
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        client = instructor.from_openai(plain, mode=mode)
        person = client.chat.completions.create(
            model=harness.MODEL, messages=MESSAGES, response_model=Person, max_tokens=80
        )
    return person.name, person.age


def chat() -> str:
    client = instructor.from_openai(plain, mode=instructor.Mode.JSON_SCHEMA)
    messages = [{"role": "user", "content": harness.QUESTION}]
    return client.chat.completions.create(
        model=harness.MODEL, messages=messages, response_model=str, max_tokens=80
    )


harness.run(["instructor"], chat=chat, structured=structured)
