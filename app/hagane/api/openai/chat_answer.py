"""A chat completion's choices, put together from the deltas that a stream would send."""

from __future__ import annotations

from typing import Any

import msgspec


class ChatAnswer:
    """Puts one choice together."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._function: dict[str, str] | None = None
        self._entries: list[msgspec.Raw] = []
        self._reason: str | None = None

    def add(
        self, deltas: list[dict[str, Any]], logprobs: dict[str, Any] | None, reason: str | None
    ) -> None:
        """Take what an update has brought."""
        for delta in deltas:
            self._add(delta)
        self._entries += logprobs["content"] if logprobs else []
        self._reason = reason or self._reason

    def _add(self, delta: dict[str, Any]) -> None:
        self._text.append(delta.get("content") or "")
        self._reasoning.append(delta.get("reasoning_content") or "")
        if (call := delta.get("function_call")) is not None:
            name = {"name": call["name"]} if "name" in call else {}
            before = self._function or {"arguments": ""}
            arguments = before["arguments"] + call["arguments"]
            self._function = {**before, **name, "arguments": arguments}
        for call in delta.get("tool_calls", ()):
            if call["index"] == len(self._calls):
                self._calls.append(
                    {"id": call["id"], "type": "function", "function": {**call["function"]}}
                )
            else:
                function = self._calls[call["index"]]["function"]
                function["arguments"] += call["function"]["arguments"]

    def as_json(self, index: int, with_logprobs: bool) -> dict[str, Any]:
        """OpenAI's choice."""
        text: str | None = "".join(self._text)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self._function:
            message |= {"content": text or None, "function_call": self._function}
        if self._calls:
            message |= {"content": text or None, "tool_calls": self._calls}
        if reasoning := "".join(self._reasoning):
            message["reasoning_content"] = reasoning
        logprobs = {"content": self._entries, "refusal": None} if with_logprobs else None
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": self._reason,
        }
