"""Writes the events of an answer in the words of the Messages dialect.

https://docs.anthropic.com/en/docs/build-with-claude/streaming
"""

from __future__ import annotations

import uuid
from typing import Any

import msgspec

from hagane.api.answering import new_call_id
from hagane.generation.events import (
    Event,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    ToolCallArguments,
    ToolCallStarted,
    Update,
)
from hagane.generation.usage import Usage

Wire = dict[str, Any]
_REASONS: dict[FinishReason, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
}
# (type of the delta, and the field of the block and of the delta) by the type of the block.
_DELTAS = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}


class MessageWriter:
    """Turns updates into events, and puts the message together on the way."""

    def __init__(self, model: str, usage: Usage) -> None:
        self.message: dict[str, Any] = {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }
        self._usage = usage
        self._texts: list[str] | None = None

    def begin(self) -> list[Wire]:
        """The events before the first token."""
        self.message["usage"] = show_usage(self._usage)
        message = {**self.message, "content": []}
        return [{"type": "message_start", "message": message}, {"type": "ping"}]

    def add(self, update: Update) -> list[Wire]:
        """The events of one update."""
        written: list[Wire] = []
        for event in update.events:
            written += self._write(event)
        if update.finish_reason is not None:
            self.message["stop_reason"] = _REASONS[update.finish_reason]
            if update.stopped is not None and update.finish_reason == "stop":
                self.message["stop_reason"] = "stop_sequence"
                self.message["stop_sequence"] = update.stopped
        return written

    def finish(self) -> list[Wire]:
        """The events of the end."""
        written = self._close()
        usage = self.message["usage"] = show_usage(self._usage)
        delta = {name: self.message[name] for name in ("stop_reason", "stop_sequence")}
        return [
            *written,
            {"type": "message_delta", "delta": delta, "usage": usage},
            {"type": "message_stop"},
        ]

    def _write(self, event: Event) -> list[Wire]:
        if isinstance(event, TextDelta):
            return [*self._enter({"type": "text", "text": ""}), self._delta(event.text)]
        if isinstance(event, ReasoningDelta):
            block = {"type": "thinking", "thinking": "", "signature": ""}
            return [*self._enter(block), self._delta(event.text)]
        if isinstance(event, ToolCallStarted):
            block = {"type": "tool_use", "id": f"toolu_{new_call_id()}", "name": event.name}
            return [*self._close(), *self._open({**block, "input": {}})]
        if isinstance(event, ToolCallArguments):
            return [self._delta(event.text)]
        return []

    def _enter(self, block: dict[str, Any]) -> list[Wire]:
        blocks = self.message["content"]
        if self._texts is not None and blocks[-1]["type"] == block["type"]:
            return []
        return [*self._close(), *self._open(block)]

    def _open(self, block: dict[str, Any]) -> list[Wire]:
        self.message["content"].append(block)
        self._texts = []
        start = {"type": "content_block_start", "index": self._index, "content_block": {**block}}
        return [start]

    def _delta(self, text: str) -> Wire:
        if self._texts is None:
            raise RuntimeError("a delta without a block that it belongs to")
        self._texts.append(text)
        kind, field = _DELTAS[self.message["content"][-1]["type"]]
        delta = {"type": kind, field: text}
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _close(self) -> list[Wire]:
        texts, self._texts = self._texts, None
        if texts is None:
            return []
        block, text = self.message["content"][-1], "".join(texts)
        if block["type"] == "tool_use":
            block["input"] = _object(text)
        else:
            block[block["type"]] = text
        return [{"type": "content_block_stop", "index": self._index}]

    @property
    def _index(self) -> int:
        return len(self.message["content"]) - 1


def _object(arguments: str) -> Any:
    """A call's arguments; those that were cut short are shown as far as they came."""
    try:
        return msgspec.json.decode(arguments or "{}")
    except msgspec.DecodeError:
        return {"partial_json": arguments}


def show_usage(usage: Usage) -> dict[str, Any]:
    """The token counts of a message; those of the prompt that were cached are counted apart."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }
