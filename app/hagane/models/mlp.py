"""The feed-forward block of a layer, or one expert of a mixture."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from hagane.kernels.backend import Operations
from hagane.models.config import ModelConfig, Quantization
from hagane.models.linear import make_projection


class Linears(Protocol):
    """Applies linear layers, with each row's adapter if it has one."""

    def linear(self, layer: nn.Module, x: Tensor, residual: Tensor | None = None) -> Tensor: ...


class MLP(nn.Module):
    """The feed-forward block: SwiGLU, or what the family has instead."""

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        path: str,
        quantization: Quantization | None,
        operations: Operations,
    ) -> None:
        super().__init__()
        self.operations = operations
        self.activation, self.gated = config.activation, config.gated
        self.gate_up_proj = make_projection(config, layer, f"{path}.gate_up_proj", quantization)
        self.down_proj = make_projection(config, layer, f"{path}.down_proj", quantization)

    def forward(
        self,
        x: Tensor,
        context: Linears,
        residual: Tensor | None,
        scores: Tensor | None = None,
    ) -> Tensor:
        """x [tokens, hidden]; what is added to `residual` is times the sigmoid of `scores`.

        These are float32 [tokens, 1].
        """
        inner = context.linear(self.gate_up_proj, x)
        if self.gated and self.activation == "silu":
            inner = self.operations.silu_and_mul(inner)
        else:
            inner = self.operations.activate(inner, self.activation, gated=self.gated)
        if scores is not None:
            inner = self.operations.gate_rows(inner, scores)
        return context.linear(self.down_proj, inner, residual)
