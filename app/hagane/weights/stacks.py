"""Matrices of experts that checkpoints store as one tensor [experts, rows, columns]."""

from __future__ import annotations

import torch
from torch import Tensor

from hagane.models.config import ModelConfig


def stack_experts(config: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` as checkpoints have them, where these have one tensor for all experts."""
    for layer, spec in enumerate(config.layer_specs):
        if spec.experts is None or not spec.experts.names.stacked:
            continue
        for name in dict.fromkeys(spec.experts.names.experts):
            numbered = f"model.layers.{layer}.{name}.weight"
            own = [tensors.pop(numbered.format(e)) for e in range(spec.experts.count)]
            tensors[numbered.replace(".{}", "")] = torch.stack(own)
    return tensors
