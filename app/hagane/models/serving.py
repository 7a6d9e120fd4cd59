"""What replaces the kinds of linear layer and embedding when a model is loaded for serving.

Each holds the stored tensors as the operations in use want them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeGuard

import torch
from torch import Tensor, nn

from hagane.kernels import Operations, cpu, reference
from hagane.models.linear import (
    Dense,
    DenseEmbedding,
    Fp8,
    Int4,
    Int8,
    Int8Embedding,
    added,
    rotated,
    unpack_int4,
)


class TorchInt4(nn.Module):
    """`Int4` for serving with torch's own CPU operator, which wants a layout of its own."""

    def __init__(self, layer: Int4, dtype: torch.dtype) -> None:
        super().__init__()
        self.group_size, self.bias, self.rotation = layer.group_size, layer.bias, layer.rotation
        scale = layer.scale.to(dtype)
        # [in / group, out, (scale, offset)]: the operator subtracts 8 by itself.
        pairs = torch.stack((scale, torch.zeros_like(scale)), dim=-1)
        self.scale = pairs.transpose(0, 1).contiguous()
        codes = unpack_int4(layer.weight_int4).to(torch.int32)
        self.codes: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 2)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        out: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rotated(x, self.rotation).contiguous(), self.codes, self.group_size, self.scale
        )
        return added(out if self.bias is None else out + self.bias, residual)


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
        layer: DenseEmbedding | Int8Embedding,
        multiply: Callable[..., Tensor],
        tensors: tuple[Tensor, ...],
    ) -> None:
        super().__init__()
        self.layer, self.multiply, self.tensors = layer, multiply, tensors

    def forward(self, ids: Tensor) -> Tensor:
        rows: Tensor = self.layer(ids)
        return rows

    def logits(self, hidden: Tensor) -> Tensor:
        turned = rotated(hidden, getattr(self.layer, "rotation", 0))
        return self.multiply(turned, *self.tensors, dtype=torch.float32)


def _for_cuda(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    # Here, as importing Triton takes a while.
    from hagane.kernels.cuda import linear

    match module:
        case Dense():
            return CudaLinear(linear.dense, (module.weight.data,), module.bias)
        case Int8():
            stored = module.weight_int8, module.scale
            return CudaLinear(linear.int8, stored, module.bias, module.rotation)
        case Int4():
            stored = module.weight_int4, module.scale
            return CudaLinear(linear.int4, stored, module.bias, module.rotation)
        case Fp8():
            return CudaLinear(linear.fp8, (module.weight_fp8, module.scale), module.bias)
        case DenseEmbedding():
            return CudaEmbedding(module, linear.dense, (module.weight.data,))
        case Int8Embedding():
            stored = module.weight_int8, module.scale
            return CudaEmbedding(module, linear.int8, stored)
    return module


def for_serving(module: nn.Module, operations: Operations, dtype: torch.dtype) -> nn.Module:
    """`module`, or what replaces it when `operations` serve in `dtype`."""
    if operations is cpu:
        match module:
            case Dense():
                return Packed(cpu.pack_dense(module.weight.data, module.bias))
            case Int8():
                codes, scale, turned = module.weight_int8, module.scale, module.rotation
                return Packed(cpu.pack_int8(codes, scale, module.bias, rotation=turned))
            case Int4():
                stored = module.weight_int4, module.scale, module.group_size
                return Packed(cpu.pack_int4(*stored, module.bias, rotation=module.rotation))
            case Fp8():
                # CPUs do not compute in 8-bit floats: as large and as fast as what is dense.
                return Packed(cpu.pack_dense(module.matrix(dtype), module.bias))
            case DenseEmbedding():
                return PackedEmbedding(cpu.pack_dense(module.weight.data), dtype)
            case Int8Embedding():
                codes, scale, turned = module.weight_int8, module.scale, module.rotation
                return PackedEmbedding(cpu.pack_int8(codes, scale, rotation=turned), dtype)
        return module
    if operations is not reference:
        return _for_cuda(module, dtype)
    if isinstance(module, Int4) and module.weight_int4.device.type == "cpu":
        return TorchInt4(module, dtype)
    return module


def quantizes_natively(module: nn.Module) -> TypeGuard[Int8 | Int4 | Int8Embedding]:
    """Whether the native kernels quantize weights for this kind of layer."""
    return isinstance(module, Int8 | Int4 | Int8Embedding)


def quantize_natively(
    module: Int8 | Int4 | Int8Embedding, parts: list[Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    """`module.quantize` of parts one under the other, rounded to `dtype` first.

    Raises NonFiniteError.
    """
    group = module.group_size if isinstance(module, Int4) else 0
    codes, scale = cpu.quantize(parts, dtype, group, module.rotation)
    return {"weight_int4" if group else "weight_int8": codes, "scale": scale}


def pack_for_serving(
    module: Int8 | Int4 | Int8Embedding,
    parts: list[Tensor],
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Packed | PackedEmbedding:
    """What `for_serving` makes of `quantize_natively`'s result, in one pass over the weights."""
    group = module.group_size if isinstance(module, Int4) else 0
    packed = cpu.pack_quantized(parts, dtype, group, bias, rotation=module.rotation)
    return PackedEmbedding(packed, dtype) if isinstance(module, Int8Embedding) else Packed(packed)
