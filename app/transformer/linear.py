"""The kinds of linear layer and embedding, behind one interface.

A linear layer maps x [tokens, in] to [tokens, out] in x's dtype, and adds it to a residual of that
shape where one is given: kernels do so before they round. An embedding maps ids [tokens] to
[tokens, hidden], and is also a head: `logits` maps [n, hidden] to float32 [n, vocab] with the same
storage, so that a tied head costs nothing.

Storage, the same on disk and in memory until `for_serving` packs it for the operators in use:

    dense   weight       [out, in]            float
    int8    weight_int8  [out, in]            int8
            scale        [out]                float32, one per output
    int4    weight_int4  [out, in / 2]        uint8; bytes 4j to 4j + 3 hold inputs 8j to 8j + 7,
                                              the first four in the low halves, the others in the
                                              high halves, each stored plus 8
            scale        [out, in / group]    bfloat16, one per group of inputs

Quantization is symmetric. Embeddings and heads keep 8 bits in an int4 model: they are where
coarse weights cost most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from app.kernels import Operations, native, reference

GROUP_SIZES = (128, 64, 32)
# Ratios of the scale tried for every int4 group; the one with the least squared error wins.
_CLIPPING = tuple(1.04 - 0.04 * step for step in range(10))


@dataclass(frozen=True)
class Quantization:
    """Bits of a weight, and for int4 how many inputs share a scale (32, 64 or 128)."""

    bits: Literal[4, 8]
    group_size: int = 64


class Dense(nn.Module):
    """An unquantized, trainable linear layer."""

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """The weights [out, in] in `dtype`, without their history."""
        return self.weight.detach().to(dtype)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return _added(F.linear(x, self.weight, self.bias), residual)


class Int8(nn.Module):
    """Eight bits per weight, one scale per output channel."""

    weight_int8: Tensor
    scale: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.register_buffer(
            "weight_int8", torch.empty(out_features, in_features, dtype=torch.int8)
        )
        self.register_buffer("scale", torch.empty(out_features, dtype=torch.float32))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def quantize(self, weight: Tensor) -> dict[str, Tensor]:
        """Float rows [rows, in] of the matrix -> the same rows of the stored tensors, by name."""
        return quantize_int8(weight)

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """The weights [out, in], dequantized to `dtype`."""
        return self.weight_int8.to(dtype).mul_(self.scale[:, None].to(dtype))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        out = int8_matmul(x, self.weight_int8, self.scale)
        return _added(out if self.bias is None else out + self.bias, residual)


class Int4(nn.Module):
    """Four bits per weight, one scale per group of inputs."""

    weight_int4: Tensor
    scale: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool, group_size: int) -> None:
        super().__init__()
        self.group_size = group_size
        self.register_buffer(
            "weight_int4", torch.empty(out_features, in_features // 2, dtype=torch.uint8)
        )
        self.register_buffer(
            "scale", torch.empty(out_features, in_features // group_size, dtype=torch.bfloat16)
        )
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def quantize(self, weight: Tensor) -> dict[str, Tensor]:
        """Float rows [rows, in] of the matrix -> the same rows of the stored tensors, by name.

        Scales are those of least squared error.
        """
        groups = weight.float().unflatten(1, (-1, self.group_size))
        # The largest weight gets code -8, by the sign of the scale: the codes reach further down.
        extreme = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True)) / -8
        extreme = torch.where(extreme.abs() < 1e-12, 1e-12, extreme)
        best_error = torch.full_like(extreme, torch.inf)
        best_scale = extreme
        for ratio in _CLIPPING:
            scale = extreme * ratio
            codes = (groups / scale).round().clamp(-8, 7)
            error = (codes * scale - groups).square().sum(dim=2, keepdim=True)
            best_scale = torch.where(error < best_error, scale, best_scale)
            best_error = torch.minimum(error, best_error)
        stored = best_scale.bfloat16()
        codes = ((groups / stored.float()).round().clamp(-8, 7) + 8).to(torch.uint8).flatten(1)
        low, high = codes.unflatten(1, (-1, 2, 4)).unbind(2)
        return {"weight_int4": (low | (high << 4)).flatten(1), "scale": stored.squeeze(2)}

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """The weights [out, in], dequantized to `dtype`."""
        codes = unpack_int4(self.weight_int4).to(dtype).sub_(8)
        groups = codes.unflatten(1, (-1, self.group_size))
        weights: Tensor = groups.mul_(self.scale[:, :, None].to(dtype)).flatten(1)
        return weights

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return _added(F.linear(x, self.matrix(x.dtype), self.bias), residual)


class TorchInt4(nn.Module):
    """`Int4` for serving with torch's own CPU operator, which wants a layout of its own."""

    def __init__(self, layer: Int4, dtype: torch.dtype) -> None:
        super().__init__()
        self.group_size, self.bias = layer.group_size, layer.bias
        scale = layer.scale.to(dtype)
        # [in / group, out, (scale, offset)]: the operator subtracts 8 by itself.
        pairs = torch.stack((scale, torch.zeros_like(scale)), dim=-1)
        self.scale = pairs.transpose(0, 1).contiguous()
        codes = unpack_int4(layer.weight_int4).to(torch.int32)
        self.codes: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 2)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        out: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x.contiguous(), self.codes, self.group_size, self.scale
        )
        return _added(out if self.bias is None else out + self.bias, residual)


class DenseEmbedding(nn.Module):
    """An unquantized, trainable embedding and head."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """The weights [vocab, hidden] in `dtype`, without their history."""
        return self.weight.detach().to(dtype)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight).float()


class Int8Embedding(nn.Module):
    """An embedding and head with eight bits per weight, one scale per token of the vocabulary.

    `dtype` is that of the looked-up rows.
    """

    weight_int8: Tensor
    scale: Tensor

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.dtype = torch.float32
        self.register_buffer("weight_int8", torch.empty(vocab_size, hidden_size, dtype=torch.int8))
        self.register_buffer("scale", torch.empty(vocab_size, dtype=torch.float32))

    def quantize(self, weight: Tensor) -> dict[str, Tensor]:
        """Float rows [rows, hidden] of the matrix -> the same rows of the stored tensors."""
        return quantize_int8(weight)

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """The weights [vocab, hidden], dequantized to `dtype`."""
        return self.weight_int8.to(dtype).mul_(self.scale[:, None].to(dtype))

    def forward(self, ids: Tensor) -> Tensor:
        return (self.weight_int8[ids] * self.scale[ids][:, None]).to(self.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        return int8_matmul(hidden, self.weight_int8, self.scale).float()


def quantize_int8(weight: Tensor) -> dict[str, Tensor]:
    """Float [out, in] -> codes and one scale per row."""
    wide = weight.float()
    scale = wide.abs().amax(dim=1).clamp_min(1e-12) / 127
    codes = (wide / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
    return {"weight_int8": codes, "scale": scale}


def int8_matmul(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """x [tokens, in] times int8 codes [out, in] times scale [out] -> [tokens, out]."""
    if x.device.type == "cpu":
        out: Tensor = torch._weight_int8pack_mm(x.contiguous(), codes, scale.to(x.dtype))
        return out
    return F.linear(x, codes.to(x.dtype)) * scale.to(x.dtype)


def make_linear(
    in_features: int, out_features: int, *, bias: bool, quantization: Quantization | None
) -> Dense | Int8 | Int4:
    """The linear layer that `quantization` asks for.

    Where an int4 group does not divide `in_features`, the next smaller one that does is taken;
    where none does, the layer keeps eight bits.
    """
    if quantization is None:
        return Dense(in_features, out_features, bias)
    if quantization.bits == 4:
        for group in GROUP_SIZES:
            if group <= quantization.group_size and in_features % group == 0:
                return Int4(in_features, out_features, bias, group)
    return Int8(in_features, out_features, bias)


def make_embedding(
    vocab_size: int, hidden_size: int, quantization: Quantization | None
) -> DenseEmbedding | Int8Embedding:
    """The embedding (and head) that `quantization` asks for."""
    if quantization is None:
        return DenseEmbedding(vocab_size, hidden_size)
    return Int8Embedding(vocab_size, hidden_size)


def unpack_int4(packed: Tensor) -> Tensor:
    """uint8 [out, in / 2] -> uint8 [out, in], values 0 to 15."""
    four = packed.unflatten(1, (-1, 4))
    return torch.stack((four & 15, four >> 4), dim=2).flatten(1)


def _added(out: Tensor, residual: Tensor | None) -> Tensor:
    return out if residual is None else residual + out


class Packed(nn.Module):
    """Any kind of linear layer, for serving with the native kernels."""

    def __init__(self, weight: native.PackedWeight) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return native.linear(x, self.weight, residual=residual)


class PackedEmbedding(nn.Module):
    """Any kind of embedding, for serving with the native kernels in `dtype`."""

    def __init__(self, weight: native.PackedWeight, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.dtype = weight, dtype

    def forward(self, ids: Tensor) -> Tensor:
        return native.embed(ids, self.weight, self.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        return native.linear(hidden, self.weight, torch.float32)


class CudaLinear(nn.Module):
    """Any kind of linear layer, for serving with the Triton kernels.

    `multiply` takes x, the stored tensors, the bias and the residual.
    """

    def __init__(
        self, multiply: Callable[..., Tensor], tensors: tuple[Tensor, ...], bias: Tensor | None
    ) -> None:
        super().__init__()
        self.multiply, self.tensors, self.bias = multiply, tensors, bias

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.multiply(x, *self.tensors, self.bias, residual)


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
        return self.multiply(hidden, *self.tensors, dtype=torch.float32)


def _for_cuda(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    # Here, as importing Triton takes a while.
    from app.kernels.cuda import linear

    match module:
        case Dense():
            return CudaLinear(linear.dense, (module.weight.data,), module.bias)
        case Int8():
            return CudaLinear(linear.int8, (module.weight_int8, module.scale), module.bias)
        case Int4():
            return CudaLinear(linear.int4, (module.weight_int4, module.scale), module.bias)
        case DenseEmbedding():
            return CudaEmbedding(module, linear.dense, (module.weight.data,))
        case Int8Embedding():
            module.dtype = dtype
            stored = module.weight_int8, module.scale
            return CudaEmbedding(module, linear.int8, stored)
    return module


def for_serving(module: nn.Module, operations: Operations, dtype: torch.dtype) -> nn.Module:
    """`module`, or what replaces it when `operations` serve in `dtype`."""
    if operations is native:
        match module:
            case Dense():
                return Packed(native.pack_dense(module.weight.data, module.bias))
            case Int8():
                return Packed(native.pack_int8(module.weight_int8, module.scale, module.bias))
            case Int4():
                stored = module.weight_int4, module.scale, module.group_size
                return Packed(native.pack_int4(*stored, module.bias))
            case DenseEmbedding():
                return PackedEmbedding(native.pack_dense(module.weight.data), dtype)
            case Int8Embedding():
                return PackedEmbedding(native.pack_int8(module.weight_int8, module.scale), dtype)
        return module
    if operations is not reference:
        return _for_cuda(module, dtype)
    if isinstance(module, Int4) and module.weight_int4.device.type == "cpu":
        return TorchInt4(module, dtype)
    if isinstance(module, Int8Embedding):
        module.dtype = dtype
    return module
