"""The kinds of linear layer and embedding, behind one interface.

A linear layer maps x [tokens, in] to [tokens, out] in x's dtype, and adds it to a residual of that
shape where one is given: kernels do so before they round. An embedding maps ids [tokens] to
[tokens, hidden], and is also a head: `logits` maps [n, hidden] to float32 [n, vocab] with the same
storage, so that a tied head costs nothing.

Storage, the same on disk and in memory until `for_serving` packs it for the operators in use:

    dense   weight       [out, in]            float
    int8    weight_int8  [out, in]            int8
            scale        [out]                float32, one per output
    fp8     weight_fp8   [out, in]            float8_e4m3fn
            scale        [out]                float32, one per output
    int4    weight_int4  [out, in / 2]        uint8; bytes 4j to 4j + 3 hold inputs 8j to 8j + 7,
                                              the first four in the low halves, the others in the
                                              high halves, each stored plus 8
            scale        [out, in / group]    bfloat16, one per group of inputs

Quantization is symmetric. Codes of int8 and int4 may be of weights that are rotated along their
inputs (`reference.hadamard`, in blocks of `rotation`), which are then rotated alike: 8 bits of
inputs with outliers lose much, of rotated ones hardly anything. Embeddings and heads are int8 in an
int4 or fp8 model, too: they are where coarse weights cost most.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from hagane.kernels import cpu, reference
from hagane.models.config import Quantization

GROUP_SIZES = (128, 64, 32)
# Features in one block of the rotation: more spread outliers hardly further.
_MOST_ROTATED = 128
# Ratios of the scale tried for every int4 group; the one with the least squared error wins.
_CLIPPING = tuple(1.04 - 0.04 * step for step in range(10))


class Dense(nn.Module):
    """An unquantized, trainable linear layer."""

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.in_features = in_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """The weights [out, in] in `dtype`, without their history."""
        return self.weight.detach().to(dtype)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return added(F.linear(x, self.weight, self.bias), residual)


class Int8(nn.Module):
    """Eight bits per weight, one scale per output channel."""

    weight_int8: Tensor
    scale: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool, rotation: int = 0) -> None:
        super().__init__()
        self.in_features, self.rotation = in_features, rotation
        self.register_buffer(
            "weight_int8", torch.empty(out_features, in_features, dtype=torch.int8)
        )
        self.register_buffer("scale", torch.empty(out_features, dtype=torch.float32))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def quantize(self, weight: Tensor) -> dict[str, Tensor]:
        """Float rows [rows, in] of the matrix -> the same rows of the stored tensors, by name."""
        return quantize_int8(rotated(weight.float(), self.rotation))

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """The weights [out, in], dequantized to `dtype`."""
        return _dequantize_int8(self, dtype)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        out = int8_matmul(rotated(x, self.rotation), self.weight_int8, self.scale)
        return added(out if self.bias is None else out + self.bias, residual)


class Fp8(nn.Module):
    """Weights in e4m3 (Micikevicius et al., 2022, arXiv:2209.05433), one scale per output channel.

    Small weights keep their relative precision of 4 bits, where int8 gives all the same step.
    """

    weight_fp8: Tensor
    scale: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.in_features = in_features
        self.register_buffer(
            "weight_fp8", torch.empty(out_features, in_features, dtype=torch.float8_e4m3fn)
        )
        self.register_buffer("scale", torch.empty(out_features, dtype=torch.float32))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def quantize(self, weight: Tensor) -> dict[str, Tensor]:
        """Float rows [rows, in] of the matrix -> the same rows of the stored tensors, by name."""
        wide = weight.float()
        scale = wide.abs().amax(dim=1).clamp_min(1e-12) / torch.finfo(torch.float8_e4m3fn).max
        return {"weight_fp8": (wide / scale[:, None]).to(torch.float8_e4m3fn), "scale": scale}

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """The weights [out, in], dequantized to `dtype`."""
        return (self.weight_fp8.float() * self.scale[:, None]).to(dtype)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return added(F.linear(x, self.matrix(x.dtype), self.bias), residual)


class Int4(nn.Module):
    """Four bits per weight, one scale per group of inputs."""

    weight_int4: Tensor
    scale: Tensor

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
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def quantize(self, weight: Tensor) -> dict[str, Tensor]:
        """Float rows [rows, in] of the matrix -> the same rows of the stored tensors, by name.

        Scales are those of least squared error.
        """
        groups = rotated(weight.float(), self.rotation).unflatten(1, (-1, self.group_size))
        scale = int4_scale(groups)
        codes = (int4_codes(groups, scale.float()) + 8).to(torch.uint8).flatten(1)
        return {"weight_int4": pack_codes(codes), "scale": scale.squeeze(2)}

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """The weights [out, in], dequantized to `dtype`."""
        codes = unpack_int4(self.weight_int4).to(dtype).sub_(8)
        groups = codes.unflatten(1, (-1, self.group_size))
        weights: Tensor = groups.mul_(self.scale[:, :, None].to(dtype)).flatten(1)
        return rotated(weights, self.rotation)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return added(F.linear(x, self.matrix(x.dtype), self.bias), residual)


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

    def __init__(self, vocab_size: int, hidden_size: int, rotation: int = 0) -> None:
        super().__init__()
        self.dtype, self.rotation = torch.float32, rotation
        self.register_buffer("weight_int8", torch.empty(vocab_size, hidden_size, dtype=torch.int8))
        self.register_buffer("scale", torch.empty(vocab_size, dtype=torch.float32))

    def quantize(self, weight: Tensor) -> dict[str, Tensor]:
        """Float rows [rows, hidden] of the matrix -> the same rows of the stored tensors."""
        return quantize_int8(rotated(weight.float(), self.rotation))

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """The weights [vocab, hidden], dequantized to `dtype`."""
        return _dequantize_int8(self, dtype)

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.weight_int8[ids] * self.scale[ids][:, None]
        return rotated(rows, self.rotation).to(self.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        return int8_matmul(rotated(hidden, self.rotation), self.weight_int8, self.scale).float()


def _dequantize_int8(layer: Int8 | Int8Embedding, dtype: torch.dtype) -> Tensor:
    wide = layer.weight_int8.to(dtype).mul_(layer.scale[:, None].to(dtype))
    return rotated(wide, layer.rotation)


def rotated(x: Tensor, rotation: int) -> Tensor:
    """x [..., features], rotated in blocks of `rotation`; as it is for 0."""
    return reference.hadamard(x, rotation) if rotation else x


def rotation_block(features: int) -> int:
    """The largest power of two, up to 128, that divides `features`."""
    return min(_MOST_ROTATED, features & -features)


def quantize_int8(weight: Tensor) -> dict[str, Tensor]:
    """Float [out, in] -> codes and one scale per row."""
    codes, scale = cpu.quantize_rows(weight)
    return {"weight_int8": codes, "scale": scale}


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
    """uint8 [out, in], values 0 to 15 -> uint8 [out, in / 2], stored as `Int4` says."""
    low, high = codes.unflatten(1, (-1, 2, 4)).unbind(2)
    packed: Tensor = (low | (high << 4)).flatten(1)
    return packed


def int8_matmul(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """x [tokens, in] times int8 codes [out, in] times scale [out] -> [tokens, out]."""
    if x.device.type == "cpu":
        out: Tensor = torch._weight_int8pack_mm(x.contiguous(), codes, scale.to(x.dtype))
        return out
    return F.linear(x, codes.to(x.dtype)) * scale.to(x.dtype)


Linear = Dense | Int8 | Int4 | Fp8
Quantized = Int8 | Int4 | Fp8 | Int8Embedding


def make_linear(
    in_features: int,
    out_features: int,
    *,
    bias: bool,
    quantization: Quantization | None,
    eight_bits: bool = False,
) -> Linear:
    """The linear layer that `quantization` asks for, with 8 bits instead of 4 for `eight_bits`.

    Where an int4 group does not divide `in_features`, the next smaller one that does is taken;
    where none does, the layer is int8.
    """
    if quantization is None:
        return Dense(in_features, out_features, bias)
    if quantization.format == "fp8":
        return Fp8(in_features, out_features, bias)
    rotation = rotation_block(in_features) if quantization.rotated else 0
    if quantization.format == "int4" and not eight_bits:
        for group in GROUP_SIZES:
            if group <= quantization.group_size and in_features % group == 0:
                return Int4(in_features, out_features, bias, group, rotation)
    return Int8(in_features, out_features, bias, rotation)


def make_embedding(
    vocab_size: int, hidden_size: int, quantization: Quantization | None
) -> DenseEmbedding | Int8Embedding:
    """The embedding (and head) that `quantization` asks for."""
    if quantization is None:
        return DenseEmbedding(vocab_size, hidden_size)
    rotation = rotation_block(hidden_size) if quantization.rotated else 0
    return Int8Embedding(vocab_size, hidden_size, rotation)


def unpack_int4(packed: Tensor) -> Tensor:
    """uint8 [out, in / 2] -> uint8 [out, in], values 0 to 15."""
    four = packed.unflatten(1, (-1, 4))
    return torch.stack((four & 15, four >> 4), dim=2).flatten(1)


def added(out: Tensor, residual: Tensor | None) -> Tensor:
    """What every layer ends with."""
    return out if residual is None else residual + out
