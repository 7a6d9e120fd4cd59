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
) -> tuple[Tensor, Tensor]:
    """Float32 logits [tokens, experts] -> the `chosen` experts of each token, and their weights.

    int32 and float32 [tokens, chosen], the best first. `correction` is float32 [experts]; the
    arguments mean what they do in `models.config.Routing`.
    """
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


def gate_rows(x: Tensor, scores: Tensor) -> Tensor:
    """x [tokens, features] times the sigmoid of float32 scores [tokens, 1]."""
    return (x.float() * scores.sigmoid()).to(x.dtype)
