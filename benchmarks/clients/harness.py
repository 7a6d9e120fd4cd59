"""What every client is put through; run in the client's own environment, so only with the standard
library. A client's file defines some of `chat`, `tools`, `structured` and `embeddings`, each of
which returns what `CHECKS` looks at, and calls `run`.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import sys
from collections.abc import Callable
from typing import Any

URL = os.environ.get("HAGANE_CLIENT_URL", "http://127.0.0.1:8000")
MODEL = os.environ.get("HAGANE_CLIENT_MODEL", "hagane-mini")
KEY = "none-is-asked-for"
# Only these checks, if any are named.
WANTED = frozenset(os.environ.get("HAGANE_CLIENT_CHECKS", "").split())
QUESTION = "Say hello in one short sentence."
TIRED = re.compile("maximum|max.?turns|limit|recursion", re.IGNORECASE)
WEATHER = "What is the weather in Tokyo? Use the tool get_weather."
PERSON = "Ada is 36 years old. Give her name and age."
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
calls: list[str] = []


def get_weather(city: str) -> str:
    """The weather in a city now.

    Args:
        city: the name of the city
    """
    calls.append(city)
    return f"It is sunny and 23 degrees in {city}."


def _called(answer: Any) -> bool:
    """Two turns: a call, and after its result words or another call, as small models do."""
    return all(isinstance(city, str) and city for city in calls) and (
        len(calls) > 1 or (len(calls) == 1 and bool(answer))
    )


# Whether what a client returned is right. The model decides the words, not the client.
CHECKS: dict[str, Callable[[Any], bool]] = {
    "chat": lambda text: isinstance(text, str) and bool(text.strip()),
    "tools": _called,
    "structured": lambda person: isinstance(person[0], str) and type(person[1]) is int,
    "embeddings": lambda vector: len(vector) > 1 and all(isinstance(x, float) for x in vector),
}


def run(packages: list[str], **functions: Callable[[], Any]) -> None:
    """Print one line of JSON: the versions, and for each check "pass" or what happened."""
    results = {}
    for name, function in functions.items():
        if WANTED and name not in WANTED:
            continue
        calls.clear()
        try:
            value = function()
            results[name] = "pass" if CHECKS[name](value) else f"got {value!r:.120}, {calls=}"
        except Exception as error:
            said = f"{type(error).__name__}: {error}"[:400]
            # Agents give up on a model that calls again and again: its turns were made.
            tired = name == "tools" and _called(None) and TIRED.search(said)
            results[name] = "pass" if tired else said
    versions = {name: importlib.metadata.version(name) for name in packages}
    sys.stdout.write("\n" + json.dumps({"versions": versions, "results": results}) + "\n")
    sys.stdout.flush()
    os._exit(0)  # some clients leave threads that never end
