"""The loss of a quantized model against the unquantized one, weights, inputs and KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from hagane.evaluation.scoring import ScoredContinuation, scorer
from hagane.pool.messages import EngineConfig
from hagane.text.tokenizer import Tokenizer

# Tokens of one window, and windows: enough to tell 1% from 2% within seconds.
_WINDOW, _WINDOWS = 256, 8


def sample_targets(tokenizer: Tokenizer, texts: Sequence[str]) -> list[ScoredContinuation]:
    """A window of each text, as far as they are long enough, scored after its first token."""
    encoded = (tokenizer.encode(text[: 16 * _WINDOW], add_special_tokens=False) for text in texts)
    long = (ids[:_WINDOW] for ids in encoded if len(ids) >= _WINDOW)
    return [ScoredContinuation((ids[0],), tuple(ids[1:])) for ids in islice(long, _WINDOWS)]


async def mean_loss(config: EngineConfig, targets: Sequence[ScoredContinuation]) -> float:
    """Nats per token, by an engine that lives as long as this runs."""
    async with scorer(config) as scoring:
        scores = await scoring.score(targets)
    return -sum(score.logprob for score in scores) / sum(len(t.tokens) for t in targets)
