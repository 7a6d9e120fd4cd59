"""A conversation as every dialect, every template and every training record sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from hagane.system import strict_json

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class ToolCall:
    """A function that the assistant called; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str

    def as_template_input(self) -> dict[str, Any]:
        """As templates read it: arguments as an object, where they are one."""
        try:
            arguments = strict_json.loads(self.arguments) if self.arguments.strip() else {}
        except ValueError:
            arguments = self.arguments
        function = {"name": self.name, "arguments": arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True)
class Turn:
    """One message. `call_id` is that of the call whose result a tool's turn holds."""

    role: Role
    text: str
    name: str | None = None
    reasoning: str | None = None
    calls: tuple[ToolCall, ...] = ()
    call_id: str | None = None

    def as_template_input(self) -> dict[str, Any]:
        """As chat templates expect it. Absent values are left out: templates test for names."""
        given: dict[str, Any] = {"role": self.role, "content": self.text}
        optional = {
            "name": self.name,
            "reasoning_content": self.reasoning,
            "tool_calls": [call.as_template_input() for call in self.calls] or None,
            "tool_call_id": self.call_id,
        }
        return given | {key: value for key, value in optional.items() if value is not None}


@dataclass(frozen=True)
class Conversation:
    """Turns, oldest first, and the `tools` that may be called: JSON schemas as OpenAI writes them.

    `extra` are further variables of the model's template. With `continue_final` the last turn is
    the beginning of the answer.
    """

    turns: tuple[Turn, ...]
    tools: tuple[dict[str, Any], ...] = ()
    add_generation_prompt: bool = True
    extra: tuple[tuple[str, Any], ...] = ()
    continue_final: bool = False

    @property
    def size(self) -> int:
        """Characters of text in all turns."""
        return sum(len(turn.text) for turn in self.turns)

    def template_variables(self) -> dict[str, Any]:
        """The variables of the model's template besides the turns."""
        tools = {"tools": list(self.tools)} if self.tools else {}
        return {**dict(self.extra), **tools, "add_generation_prompt": self.add_generation_prompt}
