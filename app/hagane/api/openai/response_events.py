"""Writes the events of an answer in the words of the Responses dialect.

https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from hagane.api.answering import new_call_id
from hagane.api.openai.response_items import new_id
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
# The content of an item, by its kind: the type of its part, and the name of its events.
_PARTS = {
    "message": ("output_text", "response.output_text"),
    "reasoning": ("reasoning_text", "response.reasoning_text"),
}


class ResponseWriter:
    """Turns updates into events, and puts the response together on the way.

    `head` are the fields of the response that are known from the start. Every event carries the
    next sequence number.
    """

    def __init__(self, head: dict[str, Any]) -> None:
        self.response: dict[str, Any] = {**head, "output": [], "usage": None}
        self._sequence = 0
        self._open: _OpenItem | None = None
        self._reason: FinishReason | None = None

    @property
    def output(self) -> list[dict[str, Any]]:
        """The items so far."""
        output: list[dict[str, Any]] = self.response["output"]
        return output

    def queue(self) -> list[Wire]:
        """The events of a response that waits for its turn."""
        self.response["status"] = "queued"
        return [self._about("response.created"), self._about("response.queued")]

    def begin(self) -> list[Wire]:
        """The events before the first token."""
        queued = self.response["status"] == "queued"
        self.response["status"] = "in_progress"
        created = [] if queued else [self._about("response.created")]
        return [*created, self._about("response.in_progress")]

    def add(self, update: Update, logprobs: Sequence[msgspec.Raw] = ()) -> list[Wire]:
        """The events of one update; `logprobs` are those of tokens of the answer's text."""
        self._reason = update.finish_reason or self._reason
        written: list[Wire] = []
        waiting = list(logprobs)
        for event in update.events:
            written += self._write(event, waiting)
        if waiting and self._open is not None:
            self._open.logprobs += waiting
        return written

    def finish(self, usage: Usage) -> list[Wire]:
        """The events of the end."""
        cut = self._reason == "length"
        written = []
        if not self.output:
            written += self._start("message", {"role": "assistant", "content": []})
        written += self._close("incomplete" if cut else "completed")
        self.response["usage"] = show_usage(usage)
        if cut:
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        return [*written, self._end("incomplete" if cut else "completed")]

    def fail(self, code: str, message: str) -> list[Wire]:
        """The event of an answer that cannot be finished."""
        self._close("incomplete")
        self.response["error"] = {"code": code, "message": message}
        return [self._end("failed")]

    def stop(self) -> None:
        """End the open item without an event."""
        self._close("incomplete")

    def _write(self, event: Event, logprobs: list[msgspec.Raw]) -> list[Wire]:
        if isinstance(event, TextDelta):
            opened = self._enter("message", {"role": "assistant", "content": []})
            return [*opened, self._delta(event.text, logprobs)]
        if isinstance(event, ReasoningDelta):
            opened = self._enter("reasoning", {"summary": [], "content": []})
            return [*opened, self._delta(event.text, [])]
        if isinstance(event, ToolCallStarted):
            fields = {"call_id": new_call_id(), "name": event.name, "arguments": ""}
            return [*self._close(), *self._start("function_call", fields)]
        if isinstance(event, ToolCallArguments):
            item = self._opened()
            item.text.append(event.text)
            return [item.event("response.function_call_arguments.delta", self, delta=event.text)]
        return []

    def _enter(self, kind: str, fields: dict[str, Any]) -> list[Wire]:
        if self._open is not None and self._open.shown["type"] == kind:
            return []
        return [*self._close(), *self._start(kind, fields)]

    def _start(self, kind: str, fields: dict[str, Any]) -> list[Wire]:
        shown = {"id": new_id(kind), "type": kind, "status": "in_progress", **fields}
        item = _OpenItem(shown, len(self.output))
        self._open = item
        self.output.append(shown)
        added = self.event("response.output_item.added", output_index=item.place, item={**shown})
        if kind not in _PARTS:
            return [added]
        return [added, item.event("response.content_part.added", self, 0, part=item.part())]

    def _delta(self, text: str, logprobs: list[msgspec.Raw]) -> Wire:
        item = self._opened()
        item.text.append(text)
        extra: dict[str, Any] = {}
        if item.shown["type"] == "message":
            extra = {"logprobs": logprobs[:]}
            item.logprobs += logprobs
            logprobs.clear()
        _, name = _PARTS[item.shown["type"]]
        return item.event(f"{name}.delta", self, 0, delta=text, **extra)

    def _close(self, status: str = "completed") -> list[Wire]:
        item, self._open = self._open, None
        if item is None:
            return []
        item.shown["status"] = status
        text = "".join(item.text)
        written = []
        if (kind := item.shown["type"]) in _PARTS:
            part = item.part()
            item.shown["content"] = [part]
            extra = {"logprobs": part["logprobs"]} if kind == "message" else {}
            written = [
                item.event(f"{_PARTS[kind][1]}.done", self, 0, text=text, **extra),
                item.event("response.content_part.done", self, 0, part=part),
            ]
        else:
            item.shown["arguments"] = text
            name = item.shown["name"]
            done = "response.function_call_arguments.done"
            written = [item.event(done, self, name=name, arguments=text)]
        ended = self.event("response.output_item.done", output_index=item.place, item=item.shown)
        return [*written, ended]

    def _opened(self) -> _OpenItem:
        if self._open is None:
            raise RuntimeError("a delta without an item that it belongs to")
        return self._open

    def _end(self, status: str) -> Wire:
        self.response["status"] = status
        if status == "completed":
            self.response["completed_at"] = int(time.time())
        return self._about(f"response.{status}")

    def _about(self, kind: str) -> Wire:
        return self.event(kind, response={**self.response, "output": [*self.output]})

    def event(self, kind: str, **fields: Any) -> Wire:
        """One event, with the next sequence number."""
        written = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return written


class _OpenItem:
    """The item that the answer is in, at `place` in the output."""

    def __init__(self, shown: dict[str, Any], place: int) -> None:
        self.shown = shown
        self.place = place
        self.text: list[str] = []
        self.logprobs: list[msgspec.Raw] = []

    def part(self) -> dict[str, Any]:
        kind, _ = _PARTS[self.shown["type"]]
        part: dict[str, Any] = {"type": kind, "text": "".join(self.text)}
        if kind == "output_text":
            part |= {"annotations": [], "logprobs": self.logprobs[:]}
        return part

    def event(
        self, kind: str, writer: ResponseWriter, content_index: int | None = None, **fields: Any
    ) -> Wire:
        place: dict[str, Any] = {"item_id": self.shown["id"], "output_index": self.place}
        if content_index is not None:
            place["content_index"] = content_index
        return writer.event(kind, **place, **fields)


def show_usage(usage: Usage) -> dict[str, Any]:
    """The token counts of a response."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
