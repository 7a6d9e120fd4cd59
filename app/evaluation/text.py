"""Perplexity and bits per byte of documents."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from app.errors import InvalidRequestError
from app.evaluation.scoring import Scorer, Target
from app.transformer.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextResult:
    """`perplexity` is per token and so depends on the tokenizer; bits per UTF-8 byte do not."""

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

    A document longer than the model's context is cut into windows without overlap; each begins
    with the last token of the one before, as lm-evaluation-harness' `loglikelihood_rolling` does.
    Raises InvalidRequestError for no text.
    """
    texts = [text for text in documents if text]
    if not texts:
        raise InvalidRequestError("The text to evaluate is empty.", param="text")
    prefix = document_start(tokenizer)
    targets: list[Target] = []
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        targets += windows(ids, prefix, scorer.longest)
    scores = await scorer.score(targets)
    nats = -sum(score.logprob for score in scores)
    tokens = sum(len(target.tokens) for target in targets)
    size = sum(len(text.encode()) for text in texts)
    return TextResult(len(texts), tokens, size, math.exp(nats / tokens), nats / math.log(2) / size)


def document_start(tokenizer: Tokenizer) -> int:
    """The token that a document's first token is predicted from.

    Raises InvalidRequestError for a tokenizer with neither.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise InvalidRequestError("The tokenizer names neither a bos_token nor an eos_token.")


def windows(ids: Sequence[int], prefix: int, longest: int) -> Iterator[Target]:
    """`ids` in windows of at most `longest` tokens together with the token before them."""
    step = longest - 1
    before = prefix
    for start in range(0, len(ids), step):
        part = tuple(ids[start : start + step])
        yield Target((before,), part)
        before = part[-1]
