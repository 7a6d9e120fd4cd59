"""The cost of a generation, counted by observers while it runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from hagane.generation.events import Update
from hagane.pool.messages import TokenDelta


class Observer(Protocol):
    """Observes a generation; never changes it, and raises nothing.

    `started` comes once, `tokens` with every delta, `finished` when every continuation has ended,
    and `closed` at the very end, whatever the reason. Example:

        usage = Usage()
        async for event in run(request, observers=[usage]): ...
        usage.completion_tokens
    """

    def started(self, prompt_tokens: int) -> None: ...

    def tokens(self, delta: TokenDelta, update: Update) -> None: ...

    def finished(self) -> None: ...

    def closed(self) -> None: ...


@dataclass
class Usage:
    """Token counts of one generation, growing while it runs."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    def started(self, prompt_tokens: int) -> None:
        self.prompt_tokens += prompt_tokens

    def tokens(self, delta: TokenDelta, update: Update) -> None:
        # The first continuation alone reports them, with each of its deltas.
        self.cached_tokens = max(self.cached_tokens, delta.cached_tokens)
        self.completion_tokens += len(delta.tokens)
        self.reasoning_tokens += update.reasoning_tokens

    def finished(self) -> None: ...

    def closed(self) -> None: ...

    @classmethod
    def total(cls, usages: Iterable[Usage]) -> Usage:
        """Of several generations together."""
        every = list(usages)
        return cls(
            sum(usage.prompt_tokens for usage in every),
            sum(usage.completion_tokens for usage in every),
            sum(usage.cached_tokens for usage in every),
            sum(usage.reasoning_tokens for usage in every),
        )

    def as_json(self) -> dict[str, object]:
        """OpenAI's `usage`."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }
