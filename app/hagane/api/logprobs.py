"""How OpenAI's dialects show log-probabilities of tokens."""

from __future__ import annotations

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
