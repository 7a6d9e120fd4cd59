"""How OpenAI's dialects show log-probabilities of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from hagane.pool.messages import TokenLogprobs
from hagane.text.tokenizer import Tokenizer


def show_logprobs(tokenizer: Tokenizer, entry: TokenLogprobs) -> msgspec.Raw:
    """One token's entry, written at once: answers of many tokens are then joined, not written."""

    def shown(token: int, logprob: float) -> dict[str, Any]:
        raw = tokenizer.token_bytes(token)
        text = raw.decode("utf-8", errors="replace")
        # JSON has no infinity; OpenAI's own floor for impossible tokens is -9999.
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(raw)}

    top = [shown(token, logprob) for token, logprob in entry.top]
    return msgspec.Raw(
        msgspec.json.encode({**shown(entry.token, entry.logprob), "top_logprobs": top})
    )


def show_prompt_logprobs(
    tokenizer: Tokenizer, entries: Sequence[TokenLogprobs | None]
) -> list[msgspec.Raw]:
    """As vLLM shows those of a prompt: by token id, null for the first one.

    The rank of a token that is not among the most likely ones is not known.
    """
    return [
        msgspec.Raw(b"null" if entry is None else msgspec.json.encode(_by_id(tokenizer, entry)))
        for entry in entries
    ]


def _by_id(tokenizer: Tokenizer, entry: TokenLogprobs) -> dict[str, Any]:
    ranks = {token: rank for rank, (token, _) in enumerate(entry.top, 1)}
    every = dict(entry.top) | {entry.token: entry.logprob}
    return {
        str(token): {
            "logprob": max(logprob, -9999.0),
            "rank": ranks.get(token),
            "decoded_token": tokenizer.token_text(token),
        }
        for token, logprob in every.items()
    }
