"""The norms of a decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hagane.kernels.backend import Operations
from hagane.models.config import ModelConfig


class Norm(nn.Module):
    """Root-mean-square or layer normalisation with a scale, which most models learn."""

    weight: Tensor

    def __init__(
        self,
        features: int,
        config: ModelConfig,
        operations: Operations,
        *,
        bias: bool = False,
        eps: float | None = None,
    ) -> None:
        super().__init__()
        # Without one in checkpoints it stays as it is, and is in no state.
        self.learned = config.norm_weights
        if self.learned:
            self.weight = nn.Parameter(torch.ones(features))
        else:
            self.register_buffer("weight", torch.ones(features), persistent=False)
        self.bias = nn.Parameter(torch.zeros(features)) if bias else None
        self.centered = config.norm == "layer"
        self.eps, self.offset = eps or config.norm_eps, config.norm_offset
        self.operations = operations

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x [tokens, features], normalised and added to `residual` if given."""
        if not self.centered:
            return self.operations.rms_norm(x, self.weight, self.eps, self.offset, residual)
        out = self.operations.layer_norm(x, self.weight, self.bias, self.eps)
        return out if residual is None else self.operations.scaled_add(out, 1.0, residual)

    def by_head(self, x: Tensor) -> Tensor:
        """x [tokens, heads, features], each head normalised by itself."""
        out: Tensor = self(x.reshape(-1, x.shape[2]))
        return out.view(x.shape)
