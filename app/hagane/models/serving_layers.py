"""The modules that replace stored layers when a model is loaded for serving.

Each holds the stored tensors in the layout of the backend in use.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hagane.kernels import cpu, reference
from hagane.kernels.backend import Operations
from hagane.models.formats.layer import NativeQuantization, Stored, rotated


class Packed(nn.Module):
    """Any kind of linear layer, for serving with the native kernels."""

    def __init__(self, weight: cpu.PackedWeight) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return cpu.linear(x, self.weight, residual=residual)


class PackedEmbedding(nn.Module):
    """Any kind of embedding, for serving with the native kernels in `dtype`."""

    def __init__(self, weight: cpu.PackedWeight, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.dtype = weight, dtype

    def forward(self, ids: Tensor) -> Tensor:
        return cpu.embed(ids, self.weight, self.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        return cpu.linear(hidden, self.weight, torch.float32)


class CudaLinear(nn.Module):
    """Any kind of linear layer, for serving with the Triton kernels.

    `multiply` takes x, the stored tensors, the bias and the residual.
    """

    def __init__(
        self,
        multiply: Callable[..., Tensor],
        tensors: tuple[Tensor, ...],
        bias: Tensor | None,
        rotation: int = 0,
    ) -> None:
        super().__init__()
        self.multiply, self.tensors, self.bias = multiply, tensors, bias
        self.rotation = rotation

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.multiply(rotated(x, self.rotation), *self.tensors, self.bias, residual)


class CudaEmbedding(nn.Module):
    """Any kind of embedding; as a head it computes with the Triton kernels."""

    def __init__(
        self,
        layer: Stored,
        multiply: Callable[..., Tensor],
        tensors: tuple[Tensor | None, ...],
        rotation: int = 0,
    ) -> None:
        super().__init__()
        self.layer, self.multiply, self.tensors = layer, multiply, tensors
        self.rotation = rotation

    def forward(self, ids: Tensor) -> Tensor:
        rows: Tensor = self.layer(ids)
        return rows

    def logits(self, hidden: Tensor) -> Tensor:
        hidden = rotated(hidden, self.rotation)
        return self.multiply(hidden, *self.tensors, dtype=torch.float32)


def for_serving(module: nn.Module, operations: Operations, dtype: torch.dtype) -> nn.Module:
    """`module`, or its replacement when `operations` serve in `dtype`."""
    if not isinstance(module, Stored):
        return module
    if operations is cpu:
        return module.for_cpu(dtype)
    return module.for_torch(dtype) if operations is reference else module.for_cuda()


def quantize_natively(
    native: NativeQuantization, parts: list[Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    """As `quantize` of a layer, of parts one under the other, rounded to `dtype` first.

    Raises NonFiniteError.
    """
    codes, scale = cpu.quantize(parts, dtype, native.group, native.rotation)
    return {native.codes: codes, "scale": scale}


def pack_for_serving(
    native: NativeQuantization,
    parts: list[Tensor],
    bias: Tensor | None,
    dtype: torch.dtype,
) -> cpu.PackedWeight:
    """Quantize as `quantize_natively` does, and pack in the same pass over the weights."""
    return cpu.pack_quantized(parts, dtype, native.group, bias, rotation=native.rotation)
