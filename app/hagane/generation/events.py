"""The events of an answer, as they arrive; every dialect writes them in its own form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hagane.pool.messages import TokenLogprobs

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStarted:
    """The model calls a tool: the `index`-th call of this answer, from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """More of a call's arguments: pieces that together are the text of one JSON object."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of the answer; nothing follows."""

    reason: FinishReason


Event = TextDelta | ReasoningDelta | ToolCallStarted | ToolCallArguments | Finished


@dataclass(frozen=True, slots=True)
class Update:
    """All that new tokens of the continuation `index` have brought.

    `stopped` is the stop string that ended the text.
    `reasoning_tokens` of `tokens` belong to the reasoning, markers included.
    `logprobs` has an entry for each of `tokens`, where they were asked for; text that is held back
    comes later. `end` is the entry of the token that ended the text without being part of it.
    """

    index: int
    events: tuple[Event, ...]
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    end: TokenLogprobs | None = None
    reasoning_tokens: int = 0
    stopped: str | None = None
    embedding: bytes | None = None

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the continuation has ended, if it has."""
        last = self.events[-1] if self.events else None
        return last.reason if isinstance(last, Finished) else None
