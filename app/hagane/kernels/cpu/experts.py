"""Mixtures of experts through the C++ kernels: all experts of a layer in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from hagane.kernels.cpu import extension
from hagane.kernels.cpu.packing import PackedWeight
from hagane.kernels.cpu.recording import empty


class PackedExperts:
    """The MLPs of a mixture, packed: (gate and up, down) of each.

    All have one shape and format. Raises ValueError if not.
    """

    def __init__(
        self, mlps: Sequence[tuple[PackedWeight, PackedWeight]], activation: str, *, gated: bool
    ) -> None:
        self.activation, self.gated = activation, gated
        self._kept = tuple(mlps)
        self.handle = extension.experts(
            [gate_up.handle for gate_up, _ in mlps], [down.handle for _, down in mlps]
        )


def mix_experts(
    x: Tensor, chosen: Tensor, weights: Tensor, experts: PackedExperts, residual: Tensor | None
) -> Tensor:
    """The weighted sum of each row's experts, plus `residual`: x [tokens, hidden] -> like x.

    int32 `chosen` and float32 `weights` are [tokens, chosen ones]. Rows are sorted by expert, so
    that the cost is that of the experts in use; a row's bits depend on its own inputs alone.
    """
    out = empty(*x.shape, dtype=x.dtype)
    extension.mix_experts(
        experts.handle, x, out, chosen, weights, residual, experts.activation, gated=experts.gated
    )
    return out


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
    numbers = empty(logits.shape[0], chosen, dtype=torch.int32)
    weights = empty(logits.shape[0], chosen, dtype=torch.float32)
    if jitter:
        extension.route_sparsely(logits, numbers, weights, jitter=jitter, scale=scale)
        return numbers, weights
    extension.route(
        logits,
        correction,
        numbers,
        weights,
        sigmoid=score == "sigmoid",
        normalised=normalised,
        floor=floor,
        scale=scale,
        groups=groups,
        chosen_groups=chosen_groups,
        group_best=group_best,
    )
    return numbers, weights


def gate_rows(x: Tensor, scores: Tensor) -> Tensor:
    out = empty(*x.shape, dtype=x.dtype)
    extension.gate_rows(x, out, scores)
    return out
