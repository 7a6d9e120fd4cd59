"""One tool, and what calling it can come to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

# Characters of a result: a model reads a few thousand words.
LONGEST_RESULT = 20_000


class ToolError(Exception):
    """The tool could not do it; the message is for the model, which may try otherwise."""


@dataclass(frozen=True)
class Tool:
    """A function that a model may call. `parameters` is a JSON schema.

    `source` names the MCP server that has it, "" for the built-in ones. `run` takes the arguments
    and raises ToolError.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    run: Callable[[dict[str, Any]], Awaitable[str]]
    source: str = ""


def text_argument(arguments: dict[str, Any], name: str, default: str | None = None) -> str:
    """The argument `name`. Raises ToolError where it is missing or no text."""
    value = arguments.get(name, default)
    if not isinstance(value, str):
        raise ToolError(f"the argument '{name}' must be a text")
    return value


def shortened(text: str) -> str:
    """`text`, or its beginning and that it is no more than that."""
    if len(text) <= LONGEST_RESULT:
        return text
    return f"{text[:LONGEST_RESULT]}\n[cut after {LONGEST_RESULT:,} of {len(text):,} characters]"
