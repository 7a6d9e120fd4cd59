"""Responses as stored completions: data sets are made of both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hagane.api.answers import Origin
from hagane.api.schemas import ChatBody
from hagane.generation.conversation import Conversation, Turn


@dataclass(frozen=True)
class ResponseRecord:
    """What a response answers, and whose it is; kept only where `store` was asked for in words."""

    conversation: Conversation
    origin: Origin
    metadata: dict[str, str] | None

    def as_completion(
        self, response: dict[str, Any], output: list[dict[str, Any]], usage: dict[str, Any]
    ) -> tuple[ChatBody, dict[str, Any]]:
        """The request and the answer as chat completions have them; takes time.

        Raises pydantic's ValidationError for a conversation that chats do not have.
        """
        request = {
            "model": self.origin.alias or self.origin.model,
            "messages": [_message(turn) for turn in self.conversation.turns],
            "store": True,
            **({"tools": list(self.conversation.tools)} if self.conversation.tools else {}),
            **({"metadata": self.metadata} if self.metadata else {}),
        }
        calls = [_call(item) for item in output if item["type"] == "function_call"]
        message: dict[str, Any] = {"role": "assistant", "content": _text(output)}
        cut = response["status"] == "incomplete"
        ending = "length" if cut else "tool_calls" if calls else "stop"
        if calls:
            message["tool_calls"] = calls
        return ChatBody.model_validate(request), {
            "id": response["id"],
            "object": "chat.completion",
            "created": int(response["created_at"]),
            "model": self.origin.model,
            "choices": [{"index": 0, "message": message, "finish_reason": ending}],
            "usage": usage,
        }


def _message(turn: Turn) -> dict[str, Any]:
    calls = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in turn.calls
    ]
    optional = {"name": turn.name, "tool_calls": calls or None, "tool_call_id": turn.call_id}
    given = {key: value for key, value in optional.items() if value is not None}
    return {"role": turn.role, "content": turn.text, **given}


def _call(item: dict[str, Any]) -> dict[str, Any]:
    function = {"name": item["name"], "arguments": item["arguments"]}
    return {"id": item["call_id"], "type": "function", "function": function}


def _text(output: list[dict[str, Any]]) -> str:
    parts = [part for item in output if item["type"] == "message" for part in item["content"]]
    return "".join(part["text"] for part in parts if part["type"] == "output_text")
