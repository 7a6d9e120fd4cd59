"""Unquantized weights, trainable."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from hagane.kernels import cpu
from hagane.models.formats.layer import Linear, Stored, added, make_bias
from hagane.models.serving_layers import CudaEmbedding, CudaLinear, Packed, PackedEmbedding


class Dense(Linear):
    """An unquantized linear layer."""

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.in_features = in_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = make_bias(out_features, bias)

    def matrix(self, dtype: torch.dtype) -> Tensor:
        return self.weight.detach().to(dtype)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return added(F.linear(x, self.weight, self.bias), residual)

    def for_cpu(self, dtype: torch.dtype) -> nn.Module:
        return Packed(cpu.pack_dense(self.weight.data, self.bias))

    def for_cuda(self) -> nn.Module:
        from hagane.kernels.cuda import linear

        return CudaLinear(linear.dense, (self.weight.data,), self.bias)


class DenseEmbedding(Stored):
    """An unquantized embedding and head; a bias is added to scores alone."""

    def __init__(self, vocab_size: int, hidden_size: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))
        self.bias = make_bias(vocab_size, bias)

    def matrix(self, dtype: torch.dtype) -> Tensor:
        return self.weight.detach().to(dtype)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, hidden] -> float32 [n, vocab]."""
        return F.linear(hidden, self.weight, self.bias).float()

    def for_cpu(self, dtype: torch.dtype) -> nn.Module:
        return PackedEmbedding(cpu.pack_dense(self.weight.data, self.bias), dtype)

    def for_cuda(self) -> nn.Module:
        from hagane.kernels.cuda import linear

        return CudaEmbedding(self, linear.dense, (self.weight.data, self.bias))
