"""Eight bits per weight, one scale per output channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from hagane.kernels import cpu
from hagane.kernels.cpu import training
from hagane.models.formats.layer import (
    FrozenWeights,
    NativeQuantization,
    QuantizedLinear,
    Stored,
    added,
    make_bias,
    rotated,
)
from hagane.models.serving_layers import CudaEmbedding, CudaLinear, Packed, PackedEmbedding


class Int8(QuantizedLinear):
    """An 8-bit linear layer."""

    weight_int8: Tensor
    scale: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool, rotation: int = 0) -> None:
        super().__init__()
        self.in_features, self.rotation = in_features, rotation
        self.register_buffer(
            "weight_int8", torch.empty(out_features, in_features, dtype=torch.int8)
        )
        self.register_buffer("scale", torch.empty(out_features, dtype=torch.float32))
        self.bias = make_bias(out_features, bias)

    @property
    def native(self) -> NativeQuantization:
        return NativeQuantization("weight_int8", group=0, rotation=self.rotation)

    def quantize(self, weight: Tensor) -> dict[str, Tensor]:
        return quantize_int8(rotated(weight.float(), self.rotation))

    def matrix(self, dtype: torch.dtype) -> Tensor:
        return _dequantize(self.weight_int8, self.scale, self.rotation, dtype)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        out = int8_matmul(rotated(x, self.rotation), self.weight_int8, self.scale)
        return added(out if self.bias is None else out + self.bias, residual)

    def for_cpu(self, dtype: torch.dtype) -> nn.Module:
        return Packed(self._pack())

    def for_cuda(self) -> nn.Module:
        from hagane.kernels.cuda import linear

        stored = self.weight_int8, self.scale
        return CudaLinear(linear.int8, stored, self.bias, self.rotation)

    def pack_for_training(self) -> FrozenWeights:
        transposed = training.pack_transposed(self.weight_int8, self.scale)
        return FrozenWeights(self._pack(), transposed, self.rotation)

    def _pack(self) -> cpu.PackedWeight:
        return cpu.pack_int8(self.weight_int8, self.scale, self.bias, rotation=self.rotation)


class Int8Embedding(Stored):
    """An 8-bit embedding and head, one scale per token of the vocabulary.

    `dtype` is that of the looked-up rows. A bias is added to scores alone.
    """

    weight_int8: Tensor
    scale: Tensor

    def __init__(
        self, vocab_size: int, hidden_size: int, rotation: int = 0, *, bias: bool = False
    ) -> None:
        super().__init__()
        self.bias = make_bias(vocab_size, bias)
        self.dtype, self.rotation = torch.float32, rotation
        self.register_buffer("weight_int8", torch.empty(vocab_size, hidden_size, dtype=torch.int8))
        self.register_buffer("scale", torch.empty(vocab_size, dtype=torch.float32))

    @property
    def native(self) -> NativeQuantization:
        return NativeQuantization("weight_int8", group=0, rotation=self.rotation)

    def quantize(self, weight: Tensor) -> dict[str, Tensor]:
        """Float rows [rows, hidden] of the matrix -> the same rows of the stored tensors."""
        return quantize_int8(rotated(weight.float(), self.rotation))

    def matrix(self, dtype: torch.dtype) -> Tensor:
        return _dequantize(self.weight_int8, self.scale, self.rotation, dtype)

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.weight_int8[ids] * self.scale[ids][:, None]
        return rotated(rows, self.rotation).to(self.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, hidden] -> float32 [n, vocab]."""
        out = int8_matmul(rotated(hidden, self.rotation), self.weight_int8, self.scale).float()
        return out if self.bias is None else out + self.bias.float()

    def for_cpu(self, dtype: torch.dtype) -> nn.Module:
        packed = cpu.pack_int8(self.weight_int8, self.scale, self.bias, rotation=self.rotation)
        return PackedEmbedding(packed, dtype)

    def for_cuda(self) -> nn.Module:
        from hagane.kernels.cuda import linear

        stored = self.weight_int8, self.scale, self.bias
        return CudaEmbedding(self, linear.int8, stored, self.rotation)


def quantize_int8(weight: Tensor) -> dict[str, Tensor]:
    """Float [out, in] -> codes and one scale per row."""
    codes, scale = cpu.quantize_rows(weight)
    return {"weight_int8": codes, "scale": scale}


def int8_matmul(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """x [tokens, in] times int8 codes [out, in] times scale [out] -> [tokens, out]."""
    if x.device.type == "cpu":
        out: Tensor = torch._weight_int8pack_mm(x.contiguous(), codes, scale.to(x.dtype))
        return out
    return F.linear(x, codes.to(x.dtype)) * scale.to(x.dtype)


def _dequantize(codes: Tensor, scale: Tensor, rotation: int, dtype: torch.dtype) -> Tensor:
    return rotated(codes.to(dtype).mul_(scale[:, None].to(dtype)), rotation)
