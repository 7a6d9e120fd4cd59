"""Measure perplexity and bits per byte of documents."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from hagane.evaluation.scoring import ScoredContinuation, Scorer
from hagane.system.errors import InvalidRequestError
from hagane.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextResult:
    """`perplexity` is per token, so it depends on the tokenizer; bits per UTF-8 byte do not."""

    documents: int
    tokens: int
    bytes: int
    perplexity: float
    bits_per_byte: float

    def __str__(self) -> str:
        return (
            f"{self.bits_per_byte:.4f} bits per byte, perplexity {self.perplexity:.3f} per token "
            f"({self.documents} documents, {self.tokens} tokens)"
        )


async def evaluate_text(
    scorer: Scorer, tokenizer: Tokenizer, documents: Iterable[str]
) -> TextResult:
    """Score every token of every document, the first one after the begin- or end-of-text token.

    A document longer than the model's context is scored in windows, as `loglikelihood_rolling`
    of lm-evaluation-harness does. Raises InvalidRequestError without any text.
    """
    texts = [text for text in documents if text]
    if not texts:
        raise InvalidRequestError("The text to evaluate is empty.", param="text")
    prefix = document_start(tokenizer)
    continuations: list[ScoredContinuation] = []
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        continuations += windows(ids, prefix, scorer.longest)
    scores = await scorer.score(continuations)
    nats = -sum(score.logprob for score in scores)
    tokens = sum(len(continuation.tokens) for continuation in continuations)
    size = sum(len(text.encode()) for text in texts)
    return TextResult(len(texts), tokens, size, math.exp(nats / tokens), nats / math.log(2) / size)


def document_start(tokenizer: Tokenizer) -> int:
    """The token before a document's first one, to predict it from.

    Raises InvalidRequestError for a tokenizer with neither.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise InvalidRequestError("The tokenizer has neither a bos_token nor an eos_token.")


def windows(ids: Sequence[int], prefix: int, longest: int) -> Iterator[ScoredContinuation]:
    """Cut `ids` into windows of at most `longest` tokens, context included.

    Every window is scored after one token of context, the last one after as many as fit.
    """
    tokens = (prefix, *ids)
    for start in range(1, len(tokens), longest - 1):
        part = tokens[start : start + longest - 1]
        first = max(0, start + len(part) - longest)
        yield ScoredContinuation(tokens[first:start], part)
