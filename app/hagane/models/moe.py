"""A mixture of experts in the place of an MLP (Shazeer et al., 2017, arXiv:1701.06538).

router -> the chosen experts of each token, and their weights -> their weighted sum, to which the
shared expert of all tokens is added. The cost of a step follows the experts that it uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from hagane.kernels import cpu
from hagane.kernels.backend import Operations
from hagane.models.computed import computed
from hagane.models.config import ExpertsSpec, ModelConfig, Quantization
from hagane.models.formats.dense import DenseEmbedding
from hagane.models.mlp import MLP, Linears
from hagane.models.serving_layers import Packed


class _Unadapted:
    """Adapters leave experts as they are."""

    def linear(self, layer: nn.Module, x: Tensor, residual: Tensor | None = None) -> Tensor:
        out: Tensor = layer(x, residual)
        return out


_UNADAPTED = _Unadapted()


class Correction(nn.Module):
    """What is added to the scores of experts for the choice: float32 [experts], not trained.

    Checkpoints store it with `dims` dimensions.
    """

    weight: Tensor

    def __init__(self, experts: int, dims: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(experts))
        self.stored_shape = (*(1,) * (dims - 1), experts)


class Experts(nn.ModuleList):
    """The MLPs of a mixture, each computing the rows that chose it."""

    def mlps(self) -> Iterator[MLP]:
        return (cast(MLP, module) for module in self)

    def forward(
        self, x: Tensor, chosen: Tensor, weights: Tensor, residual: Tensor | None
    ) -> Tensor:
        """x [tokens, hidden], int32 `chosen` and float32 `weights` [tokens, chosen ones]."""
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for number in chosen.unique().tolist():
            rows, places = (chosen == number).nonzero(as_tuple=True)
            part = cast(MLP, self[number])(x[rows], _UNADAPTED, None)
            out = out.index_add(0, rows, part.float() * weights[rows, places, None])
        if residual is not None:
            out = out + residual
        return out.to(x.dtype)

    def for_cpu(self) -> NativeExperts:
        """What replaces them for the native kernels, once their layers are packed."""
        packed = [
            (cast(Packed, mlp.gate_up_proj).weight, cast(Packed, mlp.down_proj).weight)
            for mlp in self.mlps()
        ]
        first = next(self.mlps())
        return NativeExperts(cpu.PackedExperts(packed, first.activation, gated=first.gated))


class NativeExperts(nn.Module):
    """Experts for serving with the native kernels: all of them in one call."""

    def __init__(self, experts: cpu.PackedExperts) -> None:
        super().__init__()
        self.experts = experts

    def forward(
        self, x: Tensor, chosen: Tensor, weights: Tensor, residual: Tensor | None
    ) -> Tensor:
        return cpu.mix_experts(x, chosen, weights, self.experts, residual)


class MixtureOfExperts(nn.Module):
    """The router, the experts, and the shared expert if there is one."""

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        mixture: ExpertsSpec,
        quantization: Quantization | None,
        operations: Operations,
    ) -> None:
        super().__init__()
        self.operations = operations
        self.routing, self.weighted_inputs = mixture.routing, mixture.weighted_inputs

        def mlp(path: str) -> MLP:
            return MLP(config, layer, f"mlp.{path}", quantization, operations)

        # A head that scores experts: never quantized, since a near tie decides between two of them.
        self.gate = DenseEmbedding(mixture.count, config.hidden_size, bias=mixture.router_bias)
        self.correction: Correction | None = None
        if mixture.corrected:
            self.correction = Correction(mixture.count, mixture.names.correction_dims)
        self.experts = Experts(mlp(f"experts.{number}") for number in range(mixture.count))
        self.shared_expert = mlp("shared_expert") if mixture.shared else None
        self.shared_gate = DenseEmbedding(1, config.hidden_size) if mixture.shared_gate else None

    def forward(self, x: Tensor, context: Linears, residual: Tensor | None) -> Tensor:
        correction = None if self.correction is None else self.correction.weight
        chosen, weights = self.operations.route(
            self.gate.logits(x), correction, **vars(self.routing)
        )
        read = x
        if self.weighted_inputs:
            read = computed(self.operations, torch.mul, x, weights)
            weights = computed(self.operations, torch.ones_like, weights)
        out: Tensor = self.experts(read, chosen, weights, residual)
        if self.shared_expert is None:
            return out
        scores = None if self.shared_gate is None else self.shared_gate.logits(x)
        added: Tensor = self.shared_expert(x, context, out, scores)
        return added
