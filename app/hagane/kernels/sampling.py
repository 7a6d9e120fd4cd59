"""Sampling of tokens from logits, in torch: on any device."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Most distributions hold their top_p mass within this many tokens; a full sort is the fallback.
_CANDIDATES = 512
_MASK64 = (1 << 64) - 1

SPLITMIX64_STEP = 0x9E3779B97F4A7C15
"""From one state of the generator to the next."""


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


def samples(logits: Tensor, sampling: SamplingTensors, draws: int) -> Tensor:
    """As `sample`, so many independent samples of each row: int64 [rows, draws].

    The first is that of `uniform`, from whose bits splitmix64 makes the further numbers.
    """
    columns = [sampling.uniform]
    states = sampling.uniform.view(torch.int64).tolist()
    for draw in range(1, draws):
        numbers = [
            (splitmix64(state + draw * SPLITMIX64_STEP) >> 11) / (1 << 53) for state in states
        ]
        columns.append(torch.tensor(numbers, dtype=torch.float64))
    return torch.stack(
        [sample(logits, replace(sampling, uniform=uniform)) for uniform in columns], dim=1
    )


def heaviest(
    logits: Tensor, rows: Tensor, temperature: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The likeliest tokens of rows int64 of float32 logits [rows, vocab]: int64 [rows, count].

    Then their weights, e^((logit - largest) / temperature), in descending order, and float64 [rows]
    the sums of the weights of all tokens. Unused places have token -1 and weight 0, which tokens
    lighter than a thousandth may have, too. `temperature` is float64, on the host.
    """
    chosen = logits[rows].double()
    scaled = (chosen - chosen.amax(1, keepdim=True)) / temperature.to(logits.device)[:, None]
    weights = scaled.exp()
    best, tokens = weights.topk(min(count, weights.shape[1]), dim=1)
    padding = (0, count - best.shape[1])
    filled = torch.nn.functional.pad(tokens, padding, value=-1)
    return filled, torch.nn.functional.pad(best, padding), weights.sum(1)


def restrict(logits: Tensor, rows: Tensor, allowed: Tensor) -> Tensor:
    """Rows int64 of float32 logits [rows, vocab], with -inf for the tokens whose bit is 0.

    `allowed` uint8 [len(rows), ceil(vocab / 8)] has the lowest bit of a byte first.
    """
    places = torch.arange(8, dtype=torch.uint8, device=allowed.device)
    bits = (allowed[:, :, None] >> places) & 1
    flags = bits.flatten(1)[:, : logits.shape[1]].bool()
    return logits[rows].masked_fill(~flags, -torch.inf)


def splitmix64(state: int) -> int:
    """A random number of 64 bits: the mixing function of Steele et al., 2014."""
    mixed = state & _MASK64
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK64
    return mixed ^ (mixed >> 31)


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
