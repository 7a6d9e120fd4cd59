"""vLLM's fields of a chat beyond OpenAI's: token ids, of the answer and of the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hagane.api.generation import Generation
from hagane.api.logprobs import show_prompt_logprobs
from hagane.api.schemas import ChatBody
from hagane.generation.events import Update


class ChatExtras:
    """The fields of one answer that its body requested."""

    def __init__(self, body: ChatBody, generation: Generation) -> None:
        self.wants_tokens = body.return_token_ids
        self.of_prompt: dict[str, Any] = {}
        self._tokenizer = generation.resolved.text.tokenizer
        if body.return_token_ids:
            self.of_prompt["prompt_token_ids"] = list(generation.request.prompt)

    def add(self, update: Update) -> None:
        """Collect an update's report on the prompt."""
        if update.prompt_logprobs is not None:
            shown = show_prompt_logprobs(self._tokenizer, update.prompt_logprobs)
            self.of_prompt["prompt_logprobs"] = shown

    def of_choice(self, tokens: Sequence[int]) -> dict[str, Any]:
        """The fields of a choice, or of a piece of it, that has these tokens."""
        return {"token_ids": list(tokens)} if self.wants_tokens else {}
