"""The loss of group-relative policy optimisation.

Of a group of answers to one task, an answer's advantage is its reward less the group's mean (GRPO,
Shao et al., 2024, arXiv:2402.03300), not divided by the deviation: that would weigh tasks by how
hard they are (Dr. GRPO, Liu et al., 2025, arXiv:2503.20783). Every token of a step has the same
weight, whatever the length of its answer; ratios are clipped more loosely upwards (DAPO, Yu et al.,
2025, arXiv:2503.14476).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CLIP_LOW, CLIP_HIGH = 0.2, 0.28


@dataclass(frozen=True, eq=False)
class PolicyLoss:
    """`total` is a differentiable sum over tokens; so are `divergence` (nats) and `clipped`."""

    total: Tensor
    divergence: float
    clipped: int


def advantages(rewards: Tensor) -> Tensor:
    """float32 rewards [tasks, group] -> advantages of the same shape."""
    return rewards - rewards.mean(dim=1, keepdim=True)


def policy_loss(
    logprobs: Tensor, sampled: Tensor, base: Tensor | None, advantage: Tensor, kl: float
) -> PolicyLoss:
    """-min(r A, clip(r) A) + kl * divergence, summed over tokens; all tensors float32 [tokens].

    r is the probability of a token over that with which it was `sampled`. The divergence from the
    base is Schulman's unbiased estimate exp(d) - d - 1, d = base - logprobs (k3, 2020).
    """
    ratio = torch.exp(logprobs - sampled)
    bounded = ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH)
    total = -torch.minimum(ratio * advantage, bounded * advantage).sum()
    clipped = int((bounded * advantage < ratio * advantage).sum())
    if base is None:
        return PolicyLoss(total, 0.0, clipped)
    gap = base - logprobs
    divergence = (torch.exp(gap) - gap - 1).sum()
    return PolicyLoss(total + kl * divergence, divergence.item(), clipped)
