"""Four bits per weight, one scale per group of inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from hagane.kernels import cpu
from hagane.kernels.cpu import training
from hagane.models.formats.int8 import quantize_int8
from hagane.models.formats.layer import (
    FrozenWeights,
    NativeQuantization,
    QuantizedLinear,
    added,
    make_bias,
    rotated,
)
from hagane.models.serving_layers import CudaLinear, Packed

GROUP_SIZES = (128, 64, 32)
# Ratios of the scale tried for every group; the one with the least squared error wins.
_CLIPPING = tuple(1.04 - 0.04 * step for step in range(10))


class Int4(QuantizedLinear):
    """A 4-bit linear layer."""

    weight_int4: Tensor
    scale: Tensor
    weights_per_code = 2

    def __init__(
        self, in_features: int, out_features: int, bias: bool, group_size: int, rotation: int = 0
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.group_size, self.rotation = group_size, rotation
        self.register_buffer(
            "weight_int4", torch.empty(out_features, in_features // 2, dtype=torch.uint8)
        )
        self.register_buffer(
            "scale", torch.empty(out_features, in_features // group_size, dtype=torch.bfloat16)
        )
        self.bias = make_bias(out_features, bias)

    @property
    def native(self) -> NativeQuantization:
        return NativeQuantization("weight_int4", group=self.group_size, rotation=self.rotation)

    def quantize(self, weight: Tensor) -> dict[str, Tensor]:
        """As `QuantizedLinear.quantize`, with the scales of least squared error."""
        groups = rotated(weight.float(), self.rotation).unflatten(1, (-1, self.group_size))
        scale = int4_scale(groups)
        codes = (int4_codes(groups, scale.float()) + 8).to(torch.uint8).flatten(1)
        return {"weight_int4": pack_codes(codes), "scale": scale.squeeze(2)}

    def matrix(self, dtype: torch.dtype) -> Tensor:
        codes = unpack_int4(self.weight_int4).to(dtype).sub_(8)
        groups = codes.unflatten(1, (-1, self.group_size))
        weights: Tensor = groups.mul_(self.scale[:, :, None].to(dtype)).flatten(1)
        return rotated(weights, self.rotation)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return added(F.linear(x, self.matrix(x.dtype), self.bias), residual)

    def for_cpu(self, dtype: torch.dtype) -> nn.Module:
        return Packed(self._pack())

    def for_cuda(self) -> nn.Module:
        from hagane.kernels.cuda import linear

        stored = self.weight_int4, self.scale
        return CudaLinear(linear.int4, stored, self.bias, self.rotation)

    def for_torch(self, dtype: torch.dtype) -> nn.Module:
        return TorchInt4(self, dtype) if self.weight_int4.device.type == "cpu" else self

    def pack_for_training(self) -> FrozenWeights:
        """The backward pass uses 8-bit codes of the same weights.

        The scales of 4 bits differ within a row, so no single factor per output could be taken out
        of the sum.
        """
        codes, scale = quantize_int8(self.matrix(torch.float32)).values()
        return FrozenWeights(self._pack(), training.pack_transposed(codes, scale), rotation=0)

    def _pack(self) -> cpu.PackedWeight:
        stored = self.weight_int4, self.scale, self.group_size
        return cpu.pack_int4(*stored, self.bias, rotation=self.rotation)


class TorchInt4(nn.Module):
    """`Int4` for serving with torch's own CPU operator, which has a layout of its own."""

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


def int4_scale(groups: Tensor) -> Tensor:
    """Float32 [..., group] -> the bfloat16 scales [..., 1] of least squared error."""
    # The largest weight gets code -8, by the sign of the scale: the codes reach further down.
    extreme = groups.gather(-1, groups.abs().argmax(dim=-1, keepdim=True)) / -8
    extreme = torch.where(extreme.abs() < 1e-12, 1e-12, extreme)
    best_error = torch.full_like(extreme, torch.inf)
    best_scale = extreme
    for ratio in _CLIPPING:
        scale = extreme * ratio
        error = (int4_codes(groups, scale) * scale - groups).square().sum(dim=-1, keepdim=True)
        best_scale = torch.where(error < best_error, scale, best_scale)
        best_error = torch.minimum(error, best_error)
    return best_scale.bfloat16()


def int4_codes(weight: Tensor, scale: Tensor) -> Tensor:
    """The codes, from -8 to 7 and as floats, of weights under a scale."""
    return (weight / scale).round().clamp(-8, 7)


def pack_codes(codes: Tensor) -> Tensor:
    """uint8 [out, in], values 0 to 15 -> uint8 [out, in / 2], in the layout of `formats`."""
    low, high = codes.unflatten(1, (-1, 2, 4)).unbind(2)
    packed: Tensor = (low | (high << 4)).flatten(1)
    return packed


def unpack_int4(packed: Tensor) -> Tensor:
    """uint8 [out, in / 2] -> uint8 [out, in], values 0 to 15."""
    four = packed.unflatten(1, (-1, 4))
    return torch.stack((four & 15, four >> 4), dim=2).flatten(1)
