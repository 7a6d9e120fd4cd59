"""Writes one choice of /v1/completions, with the log-probabilities in OpenAI's older format."""

from __future__ import annotations

from typing import Any

import msgspec

from hagane.api.generation import Generation
from hagane.api.logprobs import show_prompt_logprobs
from hagane.api.schemas import CompletionBody
from hagane.generation.detokenizer import Detokenizer
from hagane.generation.events import TextDelta, Update
from hagane.pool.messages import TokenLogprobs


class CompletionChoice:
    """One continuation, with the prompt before it where that is to be echoed."""

    def __init__(self, generation: Generation, body: CompletionBody) -> None:
        self._generation = generation
        self._body = body
        self._text = ""
        self._entries: list[TokenLogprobs] = []
        self._prompt: tuple[TokenLogprobs | None, ...] = ()
        self._reason: str | None = None
        self._tokens: list[int] = []
        self._began = False
        self._echoed = not body.echo
        self._offsets = _Offsets(generation)

    def add(self, update: Update) -> None:
        self._prompt = update.prompt_logprobs or self._prompt
        self._reason = update.finish_reason
        self._tokens += update.tokens
        if self._body.max_tokens == 0:
            self._reason = self._reason and "length"
            return
        self._text += "".join(e.text for e in update.events if isinstance(e, TextDelta))
        self._entries += update.logprobs
        # It is no text, but clients that score prompts count on an entry for what follows.
        self._entries += [] if update.end is None else [update.end]

    @property
    def size(self) -> int:
        """Size of the next `take`, in entries of log-probabilities and tokens of the prompt."""
        width = 1 + (self._body.logprobs or 0)
        echoed = 0 if self._echoed else len(self._generation.request.prompt)
        return (len(self._entries) + echoed) * width

    def take(self, index: int) -> dict[str, Any]:
        """The text added since the last call, after the prompt in the first."""
        prompt: list[tuple[int, TokenLogprobs | None]] = []
        text = self._text
        if not self._echoed:
            ids = self._generation.request.prompt
            tokenizer = self._generation.resolved.text.tokenizer
            skip = self._body.skip_special_tokens
            text = tokenizer.decode(list(ids), skip_special_tokens=skip) + text
            prompt = list(zip(ids, self._prompt or [None] * len(ids), strict=True))
        logprobs = None
        if self._body.logprobs is not None:
            logprobs = self._logprobs(prompt)
        written = {"index": index, "text": text, "logprobs": logprobs}
        written |= {"finish_reason": self._reason, **self._extensions()}
        self._echoed, self._text, self._entries = True, "", []
        return written

    def _extensions(self) -> dict[str, Any]:
        """The fields that vLLM's clients ask for; those of the prompt come once."""
        shown: dict[str, Any] = {}
        if self._body.return_token_ids:
            shown["token_ids"], self._tokens = self._tokens, []
            if not self._began:
                shown["prompt_token_ids"] = list(self._generation.request.prompt)
        if self._body.prompt_logprobs is not None and self._prompt:
            tokenizer = self._generation.resolved.text.tokenizer
            shown["prompt_logprobs"] = show_prompt_logprobs(tokenizer, self._prompt)
            self._prompt = ()
        self._began = True
        return shown

    def _logprobs(self, prompt: list[tuple[int, TokenLogprobs | None]]) -> dict[str, Any]:
        """Parallel lists; the prompt's first token has no probability."""
        show = self._generation.resolved.text.tokenizer.token_text
        offsets = [self._offsets.push(token) for token, _ in prompt]
        if prompt:
            self._offsets.end_of_prompt()
        generated = [(entry.token, entry) for entry in self._entries]
        offsets += [self._offsets.push(token) for token, _ in generated]
        every = [*prompt, *generated]
        return {
            "tokens": [show(token) for token, _ in every],
            "token_logprobs": [None if e is None else _finite(e.logprob) for _, e in every],
            "top_logprobs": [None if e is None else self._top(e) for _, e in every],
            "text_offset": offsets,
        }

    def _top(self, entry: TokenLogprobs) -> msgspec.Raw:
        """The most likely tokens, and always the one at this place."""
        show = self._generation.resolved.text.tokenizer.token_text
        top = {show(token): _finite(logprob) for token, logprob in reversed(entry.top)}
        top[show(entry.token)] = _finite(entry.logprob)
        ordered = sorted(top.items(), key=lambda item: -item[1])
        # Written here, a token at a time: the whole may be far larger.
        return msgspec.Raw(msgspec.json.encode(dict(ordered)))


class _Offsets:
    """Where each token's text begins, in characters of the text that the client gets.

    A token that ends within a character begins where that character does; one that the text
    leaves out, where the next one will.
    """

    def __init__(self, generation: Generation) -> None:
        self._decoding = generation.decoding
        self._position = 0
        self._decoder = self._fresh()

    def _fresh(self) -> Detokenizer:
        decoding = self._decoding
        return Detokenizer(decoding.tokenizer, skip_special_tokens=decoding.skip_special_tokens)

    def push(self, token: int) -> int:
        start = self._position
        self._position += len(self._decoder.push([token]))
        return start

    def end_of_prompt(self) -> None:
        """Decode the tokens that follow by themselves, as the text is."""
        self._position += len(self._decoder.finish())
        self._decoder = self._fresh()


def _finite(logprob: float) -> float:
    """JSON has no infinity; OpenAI's own floor for impossible tokens is -9999."""
    return max(logprob, -9999.0)
