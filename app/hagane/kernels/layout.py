"""Where the tokens of one step live in the KV cache, and how they see each other."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Scoring:
    """How attention scores its keys: products times `scale`, for the most recent `window` alone.

    The token itself counts; None is all. With a `cap` scores become cap * tanh(score / cap).
    `sinks`, float32 [heads], are the scores of one more key without a value, which takes its part
    of each softmax (Xiao et al., 2023, arXiv:2309.17453).
    """

    scale: float
    window: int | None = None
    cap: float = 0.0
    sinks: Tensor | None = None


@dataclass(frozen=True)
class PagedLayout:
    """One ragged batch over a paged cache.

    Sequences are ordered so that the first `decodes` of them bring one token each. `slots` int64
    [tokens] is block * block_size + offset of every new token; `block_tables` int32 [sequences,
    most blocks] is padded with 0; `starts` int32 [sequences + 1] are row offsets, and `lengths`
    int32 [sequences] count the tokens in the cache after this step. `query_starts` and
    `context_lengths` are the last two again, on the host.
    """

    slots: Tensor
    block_tables: Tensor
    starts: Tensor
    lengths: Tensor
    query_starts: tuple[int, ...]
    context_lengths: tuple[int, ...]
    decodes: int
    block_size: int
