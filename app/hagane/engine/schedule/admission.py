"""Checks before anything is scheduled: a request, and the figures of the scheduler itself."""

from __future__ import annotations

from hagane.engine.cache.blocks import KVCache
from hagane.pool.messages import GenerateRequest
from hagane.system.errors import (
    ConfigurationError,
    ContextLengthError,
    InvalidRequestError,
    QueueFullError,
)


def check_request(request: GenerateRequest, max_sequences: int, context_length: int) -> None:
    """Raises InvalidRequestError or ContextLengthError for a request that can never run."""
    if not 1 <= request.n <= max_sequences:
        raise InvalidRequestError(
            f"n is {request.n}; this server runs 1 to {max_sequences} sequences at a "
            "time. Ask for fewer in each request.",
            param="n",
        )
    if request.sampling.max_tokens < 1:
        raise InvalidRequestError(
            f"max_tokens is {request.sampling.max_tokens}; it must be at least 1.",
            param="max_tokens",
        )
    if not request.prompt:
        raise InvalidRequestError("The prompt has no tokens; send some.", param="prompt")
    if len(request.prompt) >= context_length:
        raise ContextLengthError(
            f"This model's maximum context length is {context_length} tokens. "
            f"The prompt has {len(request.prompt)}, which leaves no room for an answer; "
            "shorten it.",
            param="prompt",
        )


def check_queue(waiting: int, max_waiting: int, longest: float, last: float) -> None:
    """Raises QueueFullError, with an estimate of when to try again, if no more requests may wait.

    `longest` is how long the first one has waited, `last` how long the last one admitted did, in
    seconds: a queue turns over in about the time that those at its head have spent in it.
    """
    if waiting < max_waiting:
        return
    seconds = min(max(last, longest, 1.0), 60.0)
    raise QueueFullError(
        f"The queue is full: {waiting} requests are waiting "
        f"(max_waiting is {max_waiting}). Try again in {seconds:.0f} s.",
        retry_after=seconds,
    )


def check_token_ids(request: GenerateRequest, vocab_size: int) -> None:
    """Raises InvalidRequestError for ids that the model has no row for: kernels read past its end.

    End tokens may lie outside: none of them is ever sampled.
    """
    for param, ids in (("prompt", request.prompt), ("logit_bias", request.sampling.logit_bias)):
        if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
            wrong = next(token for token in ids if not 0 <= token < vocab_size)
            raise InvalidRequestError(
                f"{param} has token id {wrong}; the vocabulary has {vocab_size} tokens.",
                param=param,
            )


def check_limits(
    kv: KVCache, max_batch_tokens: int, max_sequences: int, max_waiting: int, context_length: int
) -> None:
    """Raises ConfigurationError for figures of a `Scheduler` that cannot work together."""
    limits = {
        "max_sequences": max_sequences,
        "max_waiting": max_waiting,
        "context_length": context_length,
    }
    for name, value in limits.items():
        if value < 1:
            raise ConfigurationError(f"{name} is {value}; it must be at least 1")
    if max_batch_tokens < max_sequences:
        raise ConfigurationError(
            f"max_batch_tokens is {max_batch_tokens}, less than max_sequences ({max_sequences}): "
            "a step must have room for a token of each; raise the first or lower the second"
        )
    capacity = kv.total * kv.block_size
    if capacity < context_length:
        raise ConfigurationError(
            f"the KV cache holds {capacity} tokens, less than one sequence of context_length "
            f"{context_length}; raise kv_cache_memory or lower context_length"
        )
