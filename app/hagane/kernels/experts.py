"""Routing of rows to experts, through torch's own operators; `reference` has them, too."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def route(
    logits: Tensor,
    correction: Tensor | None,
    *,
    chosen: int,
    score: Literal["softmax", "sigmoid"] = "softmax",
    normalised: bool = True,
    floor: float = 1e-20,
    scale: float = 1.0,
    groups: int = 1,
    chosen_groups: int = 1,
    group_best: int = 2,
    jitter: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Float32 logits [tokens, experts] -> the `chosen` experts of each token, and their weights.

    int32 and float32 [tokens, chosen], the best first. `correction` is float32 [experts]; the
    arguments mean what they do in `models.config.Routing`.
    """
    if jitter:
        return _route_sparsely(logits, chosen, jitter, scale)
    scores = logits.softmax(-1) if score == "softmax" else logits.sigmoid()
    ranked = scores.detach() if correction is None else scores.detach() + correction
    if groups > 1:
        grouped = ranked.unflatten(1, (groups, -1))
        sums = grouped.topk(min(group_best, grouped.shape[2]), dim=2).values.sum(2)
        kept = torch.zeros_like(sums, dtype=torch.bool)
        kept.scatter_(1, sums.topk(chosen_groups, dim=1).indices, value=True)
        ranked = grouped.masked_fill(~kept[:, :, None], -torch.inf).flatten(1)
    numbers = ranked.topk(chosen, dim=1).indices
    weights = scores.gather(1, numbers)
    if normalised:
        weights = weights / weights.sum(1, keepdim=True).clamp_min(floor)
    return numbers.int(), weights * scale


def _route_sparsely(
    logits: Tensor, chosen: int, jitter: float, scale: float
) -> tuple[Tensor, Tensor]:
    """SparseMixer's choice without its noise (Liu et al., 2024, arXiv:2409.12136).

    One expert after the other: its weight is its share among those left whose logits are within
    2 * jitter of it, relative to themselves.
    """
    left, numbers, weights = logits, [], []
    for _ in range(chosen):
        most, best = left.max(-1, keepdim=True)
        with torch.no_grad():
            far = (most - logits) / logits.abs().clamp(min=most) > 2 * jitter
        weights.append(left.masked_fill(far, -torch.inf).softmax(-1).gather(1, best))
        numbers.append(best)
        left = left.scatter(1, best, -torch.inf)
    return torch.cat(numbers, 1).int(), torch.cat(weights, 1) * scale


def gate_rows(x: Tensor, scores: Tensor) -> Tensor:
    """x [tokens, features] times the sigmoid of float32 scores [tokens, 1]."""
    return (x.float() * scores.sigmoid()).to(x.dtype)
