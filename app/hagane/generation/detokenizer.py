"""Tokens to text, piece by piece: never half a character, never a piece of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from hagane.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
# A character has at most four bytes, so a tail this long that is still broken is not going to heal.
_LONGEST_TAIL = 6
_CONTEXT = 4


class Detokenizer:
    """Text of one continuation as it grows.

    Tokens are decoded behind a few tokens of context, because decoders treat the first token
    specially, and the new text is what the decoding has gained. Text whose end may still be half
    a character, or the beginning of a stop string, is held back. Stop strings are looked for in
    the text of the tokens after the first `min_tokens`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop: Sequence[str] = (),
        skip_special_tokens: bool = True,
        min_tokens: int = 0,
    ) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._skip_special = skip_special_tokens
        self._min_tokens = min_tokens
        self._tokens: list[int] = []
        self._context_start = 0
        self._context = ""
        self._decoded_end = 0
        self._held = ""
        self.stopped: str | None = None

    def push(self, tokens: Sequence[int]) -> str:
        """Text that may be shown now that `tokens` have come."""
        out = ""
        for token in tokens:
            if self.stopped is not None:
                break
            self._tokens.append(token)
            out += self._release(self._grow())
        return out

    def finish(self) -> str:
        """What was held back, when the text has ended without a stop string."""
        if self.stopped is not None:
            return ""
        rest = self._held + self._gain()
        self._held = ""
        self._decoded_end = len(self._tokens)
        return rest

    def _decode(self, start: int) -> str:
        return self._tokenizer.decode(self._tokens[start:], skip_special_tokens=self._skip_special)

    def _gain(self) -> str:
        """Text of the tokens not decoded yet, complete or not."""
        return self._decode(self._context_start)[len(self._context) :]

    def _grow(self) -> str:
        text = self._gain()
        pending = len(self._tokens) - self._decoded_end
        if text.endswith(_REPLACEMENT) and pending < _LONGEST_TAIL:
            return ""
        self._decoded_end = len(self._tokens)
        # The context must start where a character does, or its decoding would be broken.
        start = max(self._context_start, self._decoded_end - max(_CONTEXT, pending))
        context = self._decode(start)
        while start > self._context_start and context.startswith(_REPLACEMENT):
            start -= 1
            context = self._decode(start)
        self._context_start, self._context = start, context
        return text

    def _release(self, text: str) -> str:
        if not self._stop:
            return text
        if len(self._tokens) <= self._min_tokens:
            return text
        self._held += text
        found = [(self._held.find(s), s) for s in self._stop if s in self._held]
        if found:
            position, self.stopped = min(found)
            out, self._held = self._held[:position], ""
            return out
        keep = max(
            (n for s in self._stop for n in range(1, len(s)) if self._held.endswith(s[:n])),
            default=0,
        )
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out
