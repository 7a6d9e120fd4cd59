"""The interface of layers in any weight format."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hagane.kernels import cpu, reference

# Features in one block of the rotation: larger blocks spread outliers hardly further.
_MOST_ROTATED = 128


@dataclass(frozen=True)
class NativeQuantization:
    """How the native kernels quantize a layer's weights.

    `codes` is the name of the stored codes; `group` counts inputs per scale, 0 for one scale per
    row; `rotation` is the block of the inputs' rotation, 0 for none.
    """

    codes: str
    group: int
    rotation: int


class Stored(nn.Module):
    """A matrix in its stored form, as it is loaded, trained on and saved.

    The `for_...` methods make the module that replaces it for serving in `dtype` with one backend.
    """

    # How many weights one element of the codes holds.
    weights_per_code = 1

    @property
    def native(self) -> NativeQuantization | None:
        """How the native kernels quantize it; None if they do not."""
        return None

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """The weights [out, in], dequantized to `dtype` and detached."""
        raise NotImplementedError

    def for_cpu(self, dtype: torch.dtype) -> nn.Module:
        raise NotImplementedError

    def for_cuda(self) -> nn.Module:
        raise NotImplementedError

    def for_torch(self, dtype: torch.dtype) -> nn.Module:
        return self


class Linear(Stored):
    """Maps x [tokens, in] to [tokens, out] in x's dtype, and adds it to a residual if there is one.

    Kernels add the residual before they round. `models/formats/fp8.py` is a short example.
    """

    in_features: int
    bias: nn.Parameter | None

    def pack_for_training(self) -> FrozenWeights | None:
        """Both directions for the native kernels; None to dequantize for each product."""
        return None


class QuantizedLinear(Linear):
    """A linear layer whose weights are codes and scales."""

    def quantize(self, weight: Tensor) -> dict[str, Tensor]:
        """Float rows [rows, in] of the matrix -> the same rows of the stored tensors, by name."""
        raise NotImplementedError


@dataclass(frozen=True)
class FrozenWeights:
    """A matrix packed for the forward pass, and transposed for the backward pass.

    `rotation` is that of the codes, and so of the gradient.
    """

    weight: cpu.PackedWeight
    transposed: cpu.PackedWeight
    rotation: int


def make_bias(out_features: int, present: bool) -> nn.Parameter | None:
    return nn.Parameter(torch.empty(out_features)) if present else None


def added(out: Tensor, residual: Tensor | None) -> Tensor:
    """`out`, added to the residual if there is one."""
    return out if residual is None else residual + out


def rotated(x: Tensor, rotation: int) -> Tensor:
    """x [..., features], rotated in blocks of `rotation`; as it is for 0."""
    return reference.hadamard(x, rotation) if rotation else x


def rotation_block(features: int) -> int:
    """The largest power of two, up to 128, that divides `features`."""
    return min(_MOST_ROTATED, features & -features)
