"""Sampling of tokens from logits, in torch: on any device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Most distributions hold their top_p mass within this many tokens; a full sort is the fallback.
_CANDIDATES = 512


@dataclass(frozen=True)
class SamplingTensors:
    """One entry per row, on the host: float64, and int64 for `top_k` (0 is off).

    `uniform` is the number in [0, 1) that decides which token is sampled.
    """

    temperature: Tensor
    top_p: Tensor
    min_p: Tensor
    top_k: Tensor
    uniform: Tensor


def sample(logits: Tensor, sampling: SamplingTensors) -> Tensor:
    """Token ids int64 [rows] sampled from the filtered distributions of float32 [rows, vocab]."""
    vocab = logits.shape[1]

    def column(values: Tensor) -> Tensor:
        return values.to(logits.device)[:, None]

    probabilities = torch.softmax(logits.double() / column(sampling.temperature), dim=1)
    top_p, min_p, point = column(sampling.top_p), column(sampling.min_p), column(sampling.uniform)
    top_k = column(torch.where(sampling.top_k > 0, sampling.top_k, vocab))
    kept = ((top_p < 1) | (top_k < vocab) | (min_p > 0)).flatten()
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    if not kept.all():
        tokens[~kept] = _invert(probabilities[~kept], point[~kept])
    if kept.any():
        rows = (probabilities[kept], top_p[kept], top_k[kept], min_p[kept], point[kept])
        tokens[kept] = _sample_filtered(*rows)
    return tokens


def _sample_filtered(
    probabilities: Tensor, top_p: Tensor, top_k: Tensor, min_p: Tensor, point: Tensor
) -> Tensor:
    """Sample among the most likely tokens; every argument but the first is [rows, 1].

    The cut is the same however many candidates were sorted, as long as they reach it.
    """
    vocab = probabilities.shape[1]
    width = min(_CANDIDATES, vocab)
    while True:
        ordered, ids = probabilities.topk(width, dim=1)
        before = ordered.cumsum(dim=1) - ordered
        rank = torch.arange(width, device=ordered.device)
        keep = (before < top_p) & (rank < top_k) & (ordered >= min_p * ordered[:, :1])
        keep[:, 0] = True
        if width == vocab or not keep[:, -1].any():
            break
        width = vocab
    choice = _invert(ordered * keep, point)
    return ids.gather(1, choice[:, None]).flatten()


def _invert(weights: Tensor, point: Tensor) -> Tensor:
    """Index where the cumulative weight [rows, n] passes `point` [rows, 1] of the total."""
    cumulative = weights.cumsum(dim=1)
    target = point * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, target, right=True)
    # Rounding may carry the target past the last token that has any weight.
    last = (weights > 0).long().mul(torch.arange(weights.shape[1], device=weights.device)).amax(1)
    return torch.minimum(index.flatten(), last)
