"""Weight matrices in the layout of the kernels (drawn in ops.h)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hagane.kernels.arena import Arena, Arenas
from hagane.kernels.cpu import extension

_F32, _BF16, _INT8, _INT4, _GROUPED = range(5)  # Format in ops.h
# Inputs of the products of each format: as they are, or quantized by token (grouped: 32).
_INPUTS = (torch.float32, torch.bfloat16, torch.int8, torch.int8, torch.int8)
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
    return pack_dense_parts([weight], bias, arena)


def pack_dense_parts(
    parts: Sequence[Tensor], bias: Tensor | None = None, arena: Arena | None = None
) -> PackedWeight:
    """Float32 or bfloat16 matrices [rows, in] of one dtype, one under the other."""
    kind = _F32 if parts[0].dtype == torch.float32 else _BF16
    return _pack(kind, parts, parts[0].shape[1], None, bias, 0, arena=arena)


def dense_bytes(rows: int, features: int, dtype: torch.dtype) -> int:
    """The size of what `pack_dense` makes of a matrix [rows, features] without a bias."""
    kind = _F32 if dtype == torch.float32 else _BF16
    return 4 * math.prod(_shape(kind, rows, features * dtype.itemsize))


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
    return _pack(_INT8, [codes], codes.shape[1], wide, bias, 0, arena=arena, rotation=rotation)


def pack_int4(
    codes: Tensor,
    scale: Tensor,
    group_size: int,
    bias: Tensor | None = None,
    *,
    rotation: int = 0,
) -> PackedWeight:
    """uint8 [out, in / 2], stored as by `Int4`, with bfloat16 scales [out, in / group]."""
    blocks = _by_lines(scale.bfloat16())
    return _pack(_INT4, [codes], 2 * codes.shape[1], blocks, bias, group_size, rotation=rotation)


@dataclass(frozen=True)
class GroupedForm:
    """Codes of 4, 5, 6 or 8 bits in groups of 16 or 32 inputs.

    A weight is scale * (code - zero), plus the group's minimum if there are any.
    """

    bits: int
    group: int
    zero: int
    has_minimum: bool


def pack_grouped(
    rows: Iterable[tuple[Tensor, Tensor, Tensor | None]],
    shape: tuple[int, int],
    form: GroupedForm,
    bias: Tensor | None = None,
    order: Tensor | None = None,
) -> PackedWeight:
    """A matrix [out, in] of `form`, from some of its rows after the other.

    Each element of `rows` is codes uint8 [n, in], and scale and minimum float16 [n, in / group];
    n is a multiple of 16 but for the last one. `in` must be a multiple of 32: so many inputs are
    quantized to 8 bits together. With `order` [in], column i of the codes
    multiplies input order[i].
    """
    out_features, in_features = shape
    blocks, groups = padded(out_features) // LANES, in_features // form.group
    lines = _arenas.zeros((blocks, in_features // 32 * form.bits, LANES), torch.int32)
    scales = _arenas.zeros((blocks, groups, LANES), torch.float16)
    minima = _arenas.zeros(scales.shape, torch.float16) if form.has_minimum else None
    first = 0
    for codes, scale, minimum in rows:
        last = first + padded(len(codes)) // LANES
        extension.pack_grouped(codes, form.bits, lines[first:last])
        scales[first:last] = _by_lines(scale)
        if minima is not None and minimum is not None:
            minima[first:last] = _by_lines(minimum)
        first = last
    wide_bias = None if bias is None else _pad(bias.float(), 0)
    handle = extension.weight(
        kind=_GROUPED,
        out_features=out_features,
        in_features=in_features,
        units=lines.shape[1],
        group=form.group,
        codes=lines,
        scale=scales,
        bias=wide_bias,
        input_scale=None,
        rotation=0,
        bits=form.bits,
        zero=form.zero,
        minimum=minima,
    )
    if order is not None:
        order = order.to(torch.int32).contiguous()
        extension.order_inputs(handle, order)
    kept = tuple(t for t in (lines, scales, minima, wide_bias, order) if t is not None)
    return PackedWeight(_INPUTS[_GROUPED], out_features, in_features, kept, handle)


def _by_lines(values: Tensor) -> Tensor:
    """[out, groups] -> [out / 16, groups, 16]."""
    blocks: Tensor = _pad(values, 0).unflatten(0, (-1, LANES))
    return blocks.transpose(1, 2).contiguous()


def pack_transposed(codes: Tensor, scale: Tensor) -> PackedWeight:
    """The transpose [in, out] of what `pack_int8` packs: x is multiplied by `scale` [out] first."""
    ones = torch.ones(padded(codes.shape[1]))
    return _pack(_INT8, [codes.t()], len(codes), ones, None, 0, scale.float().contiguous())


def _pack(
    kind: int,
    parts: Sequence[Tensor],
    in_features: int,
    scale: Tensor | None,
    bias: Tensor | None,
    group: int,
    input_scale: Tensor | None = None,
    arena: Arena | None = None,
    rotation: int = 0,
) -> PackedWeight:
    if any(len(part) % LANES for part in parts[:-1]):
        # A block of rows would be of two parts.
        parts = [torch.cat(list(parts))]
    out_features = sum(map(len, parts))
    row_bytes = parts[0].shape[1] * parts[0].element_size()
    memory = arena or _arenas
    codes = memory.zeros(_shape(kind, out_features, row_bytes), torch.int32)
    first = 0
    for part in parts:
        last = first + padded(len(part)) // LANES
        extension.pack(part.contiguous(), row_bytes, codes.shape[1], codes[first:last])
        first = last
    scale = None if scale is None else memory.put(scale)
    return _weight(
        kind, out_features, in_features, group, codes, scale, bias, input_scale, rotation=rotation
    )


def _shape(kind: int, out_features: int, row_bytes: int) -> tuple[int, int, int]:
    """Of the lines. float32 and int4 have no tiles; else a line of 16 units is whole."""
    units = -(-row_bytes // 4)
    return padded(out_features) // LANES, units if kind in (_F32, _INT4) else padded(units), LANES


def _weight(
    kind: int,
    out_features: int,
    in_features: int,
    group: int,
    codes: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    input_scale: Tensor | None = None,
    *,
    rotation: int,
) -> PackedWeight:
    wide_bias = None if bias is None else _pad(bias.float(), 0)
    kept = codes, scale, wide_bias, input_scale
    handle = extension.weight(
        kind=kind,
        out_features=out_features,
        in_features=in_features,
        units=codes.shape[1],
        group=group,
        codes=codes,
        scale=scale,
        bias=wide_bias,
        input_scale=input_scale,
        rotation=rotation,
    )
    tensors = tuple(t for t in kept if t is not None)
    return PackedWeight(_INPUTS[kind], out_features, in_features, tensors, handle, rotation)


class NonFiniteError(ValueError):
    """A matrix holds NaN or an infinity, in `row`."""

    def __init__(self, row: int) -> None:
        super().__init__(f"NaN or an infinity in row {row}")
        self.row = row


def quantize(
    parts: Sequence[Tensor], dtype: torch.dtype, group: int, rotation: int = 0
) -> tuple[Tensor, Tensor]:
    """Float parts [rows, in], one under the other and rounded to `dtype` first, to codes and scale.

    As they are stored: int8 by rows for group 0, else int4 by groups of so many inputs. Equals the
    torch quantizers bit for bit, rotation included. Raises NonFiniteError.
    """
    rows, inputs = sum(map(len, parts)), parts[0].shape[1]
    if group:
        codes = torch.empty(rows, inputs // 2, dtype=torch.uint8)
        scale = torch.empty(rows, inputs // group, dtype=torch.bfloat16)
    else:
        codes, scale = torch.empty(rows, inputs, dtype=torch.int8), torch.empty(rows)
    _quantize(parts, dtype, group, rotation, 0, codes, scale)
    return codes, scale


def pack_quantized(
    parts: Sequence[Tensor],
    dtype: torch.dtype,
    group: int,
    bias: Tensor | None = None,
    *,
    rotation: int = 0,
) -> PackedWeight:
    """`quantize` and pack in one pass, so that little more memory than the result's is needed."""
    rows, inputs = sum(map(len, parts)), parts[0].shape[1]
    kind = _INT4 if group else _INT8
    codes = _arenas.zeros(_shape(kind, rows, inputs // 2 if group else inputs), torch.int32)
    if group:
        scale = _arenas.zeros((len(codes), inputs // group, LANES), torch.bfloat16)
    else:
        scale = _arenas.zeros((padded(rows),), torch.float32)
    _quantize(parts, dtype, group, rotation, codes.shape[1], codes, scale)
    return _weight(kind, rows, inputs, group, codes, scale, bias, rotation=rotation)


def _quantize(
    parts: Sequence[Tensor],
    dtype: torch.dtype,
    group: int,
    rotation: int,
    units: int,
    codes: Tensor,
    scale: Tensor,
) -> None:
    known = (torch.float32, torch.bfloat16)
    bad = extension.quantize(
        [part if part.dtype in known else part.float() for part in parts],
        bfloat16=dtype == torch.bfloat16,
        group=group,
        rotation=rotation,
        units=units,
        codes=codes,
        scale=scale,
    )
    if bad >= 0:
        raise NonFiniteError(bad)


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
