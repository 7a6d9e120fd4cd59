"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math

import torch
from torch import nn

from hagane.training.pretrain.config import PretrainConfig

# AdamW's learning rate relative to Muon's, for embeddings and norms. Muon takes larger steps.
_ADAMW_RELATIVE_RATE = 0.3


def make_optimizers(model: nn.Module, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the layers' matrices and AdamW for the rest.

    AdamW: Loshchilov and Hutter, 2019, arXiv:1711.05101; only matrices decay. Muon: Jordan et
    al., 2024, with updates scaled to AdamW's size (Liu et al., 2025, arXiv:2502.16982). Every
    parameter group's `peak` is the rate that `set_learning_rate` scales.
    """
    named = list(model.named_parameters())
    vectors = [p for _, p in named if p.ndim < 2]
    matrices = [p for n, p in named if p.ndim >= 2 and (".layers." in n)]
    embeddings = [p for n, p in named if p.ndim >= 2 and (".layers." not in n)]
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "adamw":
        return [_adamw([*matrices, *embeddings], vectors, rate, decay)]
    muon = torch.optim.Muon(
        [{"params": matrices, "peak": rate}],
        lr=rate,
        weight_decay=decay,
        momentum=0.95,
        adjust_lr_fn="match_rms_adamw",
    )
    return [muon, _adamw(embeddings, vectors, rate * _ADAMW_RELATIVE_RATE, decay)]


def _adamw(
    decayed: list[nn.Parameter], plain: list[nn.Parameter], rate: float, decay: float
) -> torch.optim.Optimizer:
    groups = [
        {"params": decayed, "weight_decay": decay, "peak": rate},
        {"params": plain, "weight_decay": 0.0, "peak": rate},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)


def set_learning_rate(optimizers: list[torch.optim.Optimizer], fraction: float) -> None:
    """Set every group's learning rate to `fraction` of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * fraction


def schedule(step: int, config: PretrainConfig) -> float:
    """The learning rate of `step` as a fraction of the peak, after a linear warm-up.

    `cosine` falls from the peak to the final rate over all remaining steps; `warmup-stable-decay`
    stays at the peak and falls linearly over the last `decay_steps` (Hu et al., 2024,
    arXiv:2404.06395).
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    floor = config.final_learning_rate / config.learning_rate
    if config.schedule == "cosine":
        progress = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    remaining = (config.steps - step) / max(config.decay_steps, 1)
    return floor + (1 - floor) * min(remaining, 1.0)
