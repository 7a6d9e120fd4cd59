"""Matrices of experts that checkpoints store as one tensor [experts, rows, columns]."""

from __future__ import annotations

import torch
from torch import Tensor

from hagane.models.config import ExpertsSpec, ModelConfig


def stack_experts(config: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` as checkpoints have them, where these have one tensor for all experts."""
    for layer, spec in enumerate(config.layer_specs):
        if spec.experts is not None and spec.experts.names.joint:
            owner = spec.experts.names.experts[0].partition(".{}")[0]
            _join(f"model.layers.{layer}.{owner}", spec.experts, tensors)
        if spec.experts is None or not spec.experts.names.stacked:
            continue
        for name in dict.fromkeys(spec.experts.names.experts):
            numbered = f"model.layers.{layer}.{name}.weight"
            own = [tensors.pop(numbered.format(e)) for e in range(spec.experts.count)]
            tensors[numbered.replace(".{}", "")] = torch.stack(own)
    return tensors


def _join(owner: str, experts: ExpertsSpec, tensors: dict[str, Tensor]) -> None:
    """Put the numbered matrices and biases below `owner` together as checkpoints have them."""

    def stack(part: str, kind: str) -> Tensor:
        names = (f"{owner}.{number}.{part}_proj.{kind}" for number in range(experts.count))
        return torch.stack([tensors.pop(name) for name in names])

    for kind, end in (("weight", ""), ("bias", "_bias"))[: 2 if experts.bias else 1]:
        gate, up = stack("gate", kind), stack("up", kind)
        if experts.names.joint == "alternating":
            both = torch.stack((gate, up), dim=2).flatten(1, 2)
        else:
            both = torch.cat((gate, up), dim=1)
        down = stack("down", kind)
        if kind == "weight":
            both, down = both.transpose(1, 2).contiguous(), down.transpose(1, 2).contiguous()
        tensors[f"{owner}.gate_up_proj{end}"], tensors[f"{owner}.down_proj{end}"] = both, down
