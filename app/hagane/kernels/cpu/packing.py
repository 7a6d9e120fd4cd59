"""Weight matrices in the layout of the kernels (drawn in ops.h)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hagane.kernels.arena import Arena, Arenas
from hagane.kernels.cpu import extension

_F32, _BF16, _INT8, _INT4 = range(4)  # Format in ops.h
# What a format multiplies its weights by: inputs as they are, or quantized per token.
_INPUTS = (torch.float32, torch.bfloat16, torch.int8, torch.int8)
LANES = 16  # outputs that a line of a packed matrix holds

# Where the matrices of models lie.
_arenas = Arenas(1 << 26)


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight matrix [out, in] in the kernels' layout.

    `inputs` is the dtype that the kernels bring its inputs to, `rotation` the block in which they
    are rotated before, or 0.
    """

    inputs: torch.dtype
    out_features: int
    in_features: int
    tensors: tuple[Tensor, ...]
    handle: extension.Weight
    rotation: int = 0

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


def pack_dense(
    weight: Tensor, bias: Tensor | None = None, arena: Arena | None = None
) -> PackedWeight:
    """Float32 or bfloat16 [out, in]."""
    kind = _F32 if weight.dtype == torch.float32 else _BF16
    return _pack(kind, weight, weight.shape[1], None, bias, 0, arena=arena)


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Float [out, in] -> int8 codes and one float32 scale per row [out], symmetric."""
    wide = weight.float()
    scale = wide.abs().amax(dim=1).clamp_min(1e-12) / 127
    return (wide / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def pack_int8(
    codes: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    arena: Arena | None = None,
    *,
    rotation: int = 0,
) -> PackedWeight:
    """int8 [out, in] with one scale per output [out].

    With `rotation` the codes are of weights rotated in blocks of so many inputs
    (`reference.hadamard`), and so is what they are multiplied by.
    """
    wide = _pad(scale.float(), 0)
    return _pack(_INT8, codes, codes.shape[1], wide, bias, 0, arena=arena, rotation=rotation)


def pack_int4(
    codes: Tensor,
    scale: Tensor,
    group_size: int,
    bias: Tensor | None = None,
    *,
    rotation: int = 0,
) -> PackedWeight:
    """uint8 [out, in / 2], stored as `Int4` says, with bfloat16 scales [out, in / group]."""
    blocks = _pad(scale.bfloat16(), 0).unflatten(0, (-1, LANES)).transpose(1, 2).contiguous()
    return _pack(_INT4, codes, 2 * codes.shape[1], blocks, bias, group_size, rotation=rotation)


def pack_transposed(codes: Tensor, scale: Tensor) -> PackedWeight:
    """The transpose [in, out] of what `pack_int8` packs: x is multiplied by `scale` [out] first."""
    ones = torch.ones(padded(codes.shape[1]))
    return _pack(_INT8, codes.t(), len(codes), ones, None, 0, scale.float().contiguous())


def _pack(
    kind: int,
    rows: Tensor,
    in_features: int,
    scale: Tensor | None,
    bias: Tensor | None,
    group: int,
    input_scale: Tensor | None = None,
    arena: Arena | None = None,
    rotation: int = 0,
) -> PackedWeight:
    # Units are four bytes; but for float32, whose kernel has no tiles, a line of 16 units is whole.
    width = 4 // rows.element_size()
    padded = _pad(_pad(rows, 1, width * (1 if kind in (_F32, _INT4) else LANES)), 0)
    units = padded.view(torch.int32)
    lines = units.unflatten(0, (-1, LANES)).transpose(1, 2)
    memory = arena or _arenas
    codes, scale = memory.put(lines), None if scale is None else memory.put(scale)
    wide_bias = None if bias is None else _pad(bias.float(), 0)
    kept = codes, scale, wide_bias, input_scale
    tensors = tuple(t for t in kept if t is not None)
    handle = extension.weight(
        kind=kind,
        out_features=rows.shape[0],
        in_features=in_features,
        units=units.shape[1],
        group=group,
        codes=codes,
        scale=scale,
        bias=wide_bias,
        input_scale=input_scale,
        rotation=rotation,
    )
    return PackedWeight(_INPUTS[kind], rows.shape[0], in_features, tensors, handle, rotation)


def padded(count: int, multiple: int = LANES) -> int:
    """`count`, or the next multiple after it."""
    return count + -count % multiple


def _pad(tensor: Tensor, dim: int, multiple: int = LANES) -> Tensor:
    missing = -tensor.shape[dim] % multiple
    if not missing:
        return tensor.contiguous()
    shape = list(tensor.shape)
    shape[dim] = missing
    return torch.cat((tensor, tensor.new_zeros(shape)), dim)
