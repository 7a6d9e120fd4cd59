"""Tokens to text, piece by piece: never half a character, never a piece of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from hagane.generation.stop import StopMatcher, StopStrings
from hagane.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
# A character has at most four bytes, so a tail this long that is still broken is not going to heal.
_LONGEST_TAIL = 6
_CONTEXT = 4


class Detokenizer:
    """Text of one continuation as it grows.

    Text whose end may still be half a character, or the beginning of a stop string, is held back.
    Stop strings are looked for in the text of the tokens after the first `min_tokens`. The special
    tokens `kept` are shown even where special tokens are skipped.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop: StopStrings | None = None,
        skip_special_tokens: bool = True,
        kept: Sequence[str] = (),
        min_tokens: int = 0,
    ) -> None:
        self._decoder: _Decoder = (
            _ByteDecoder(tokenizer) if tokenizer.joins_bytes else _ContextDecoder(tokenizer)
        )
        markers = {tokenizer.added_id(text) for text in kept}
        self._skipped = tokenizer.special_ids - markers if skip_special_tokens else frozenset()
        self._matcher = StopMatcher(stop or StopStrings())
        self._unsearched = min_tokens

    @property
    def stopped(self) -> str | None:
        """The stop string that has ended the text."""
        return self._matcher.stopped

    def push(self, tokens: Sequence[int]) -> str:
        """Text that may be shown now that `tokens` have come."""
        out = ""
        for token in tokens:
            text = "" if token in self._skipped else self._decoder.push(token)
            if self._unsearched:
                self._unsearched -= 1
                out += text
            else:
                out += self._matcher.push(text)
        return out

    def finish(self) -> str:
        """The text held back, after an end without a stop string."""
        if self.stopped is not None:
            return ""
        out = self._matcher.push(self._decoder.finish())
        return out if self.stopped is not None else out + self._matcher.finish()


class _Decoder(Protocol):
    """Text of tokens that come one at a time; `push` holds back the bytes of half a character.

    decoder.push(hello)  # "Hello"
    decoder.push(first_byte_of_an_emoji)  # ""
    decoder.finish()  # U+FFFD: the other bytes never came
    """

    def push(self, token: int) -> str: ...

    def finish(self) -> str: ...


class _ByteDecoder:
    """Joins the tokens' bytes and decodes them as UTF-8; broken sequences become U+FFFD."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._bytes = tokenizer.token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._spaces = tokenizer.leading_spaces

    def push(self, token: int) -> str:
        return self._stripped(self._utf8.decode(self._bytes(token)))

    def finish(self) -> str:
        return self._stripped(self._utf8.decode(b"", True))

    def _stripped(self, text: str) -> str:
        while self._spaces and text:
            self._spaces -= 1
            if text[0] != " ":
                self._spaces = 0
            else:
                text = text[1:]
        return text


class _ContextDecoder:
    """For decoders that look at neighbouring tokens, as WordPiece's do.

    Tokens are decoded after a few tokens of context, because such decoders treat the first token
    specially, and the new text is what the decoding has gained.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._context_start = 0
        self._context = ""
        self._decoded_end = 0

    def push(self, token: int) -> str:
        self._tokens.append(token)
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

    def finish(self) -> str:
        rest = self._gain() if self._decoded_end < len(self._tokens) else ""
        self._decoded_end = len(self._tokens)
        return rest

    def _decode(self, start: int) -> str:
        return self._tokenizer.decode(self._tokens[start:], skip_special_tokens=False)

    def _gain(self) -> str:
        """Text of the tokens not decoded yet, complete or not."""
        return self._decode(self._context_start)[len(self._context) :]
