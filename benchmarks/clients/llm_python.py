"""`llm`, by the file of models that its users write."""

import json
import os
import tempfile
from pathlib import Path

folder = tempfile.mkdtemp()
os.environ["LLM_USER_PATH"] = folder

import harness  # noqa: E402
import llm  # noqa: E402

entry = {"model_id": "here", "model_name": harness.MODEL, "api_base": f"{harness.URL}/v1",
         "supports_tools": True, "supports_schema": True}  # fmt: skip
Path(folder, "extra-openai-models.yaml").write_text(json.dumps([entry]))
model = llm.get_model("here")
OPTIONS = {"key": harness.KEY, "temperature": 0, "max_tokens": 80}


def chat() -> str:
    return model.prompt(harness.QUESTION, **OPTIONS).text()


def tools() -> str:
    return model.chain(
        harness.WEATHER, tools=[harness.get_weather], key=harness.KEY,
        options={"temperature": 0, "max_tokens": 80},
    ).text()  # fmt: skip


def structured() -> tuple[str, int]:
    person = json.loads(model.prompt(harness.PERSON, schema=harness.SCHEMA, **OPTIONS).text())
    return person["name"], person["age"]


harness.run(["llm"], chat=chat, tools=tools, structured=structured)
