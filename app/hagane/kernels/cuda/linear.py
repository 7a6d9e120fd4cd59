"""Linear layers by the number of rows: bound by the weights' bytes, or by the tensor cores.

| rows | dense | int8, fp8 | int4 |
|---|---|---|---|
| 1 | a dot product per output, no tensor cores | the same, widened in registers | the same |
| 2 to 64 | cuBLAS | tensor cores on widened weights | the same, a sum per group |
| more | cuBLAS | inputs to 8 bits per row, 8-bit tensor cores | widened to memory, then cuBLAS |

Weights are read as `hagane.models.linear` stores them. Sums are float32, or exact in int32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.nn.functional import ScalingType

from hagane.kernels.cuda.tiles import LARGE, SMALL_BATCH, power_of_two, small_tiles, vector_tiles


@triton.jit
def finish(total, bias, residual, out, rows, columns, real, width, BIAS: tl.constexpr,
           RESIDUAL: tl.constexpr) -> None:  # fmt: skip
    """Add what is to be added before rounding, and write."""
    at = rows.to(tl.int64) * width + columns
    if BIAS:
        total += tl.load(bias + columns, mask=real, other=0.0).to(tl.float32)
    if RESIDUAL:
        total += tl.load(residual + at, mask=real, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=real)


@triton.jit
def _vector(
    x, weight, scale, bias, residual, out, outputs, inputs,
    ROWS: tl.constexpr, DEPTH: tl.constexpr, SCALED: tl.constexpr, BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
):  # fmt: skip
    """One row x [inputs] times ROWS outputs of a dense or 8-bit weight [outputs, inputs]."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = row < outputs
    sums = tl.zeros([ROWS, DEPTH], tl.float32)
    start = weight + row.to(tl.int64)[:, None] * inputs
    for k in range(0, inputs, DEPTH):
        column = k + tl.arange(0, DEPTH)
        inside = column < inputs
        factor = tl.load(x + column, mask=inside, other=0.0).to(tl.float32)
        tile = tl.load(start + column[None, :], mask=real[:, None] & inside[None, :], other=0.0)
        sums += tile.to(tl.float32) * factor[None, :]
    total = tl.sum(sums, axis=1)
    if SCALED:
        total *= tl.load(scale + row, mask=real, other=0.0)
    finish(total, bias, residual, out, row * 0, row, real, outputs, BIAS, RESIDUAL)


@triton.jit
def _vector_int4(
    x, weight, scale, bias, residual, out, outputs, groups,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, HALF: tl.constexpr, BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
):  # fmt: skip
    """One row x times ROWS outputs of an int4 weight, GROUPS groups of HALF bytes at a time."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = row < outputs
    byte = tl.arange(0, HALF)
    low_input = byte // 4 * 8 + byte % 4
    sums = tl.zeros([ROWS, GROUPS, HALF], tl.float32)
    for first in range(0, groups, GROUPS):
        group = first + tl.arange(0, GROUPS)
        inside = group < groups
        at = x + group[:, None] * (2 * HALF) + low_input[None, :]
        low = tl.load(at, mask=inside[:, None], other=0.0).to(tl.float32)
        high = tl.load(at + 4, mask=inside[:, None], other=0.0).to(tl.float32)
        # Codes are stored plus 8: taken off once for all outputs.
        offset = -8.0 * (low + high)
        place = row.to(tl.int64)[:, None] * groups + group[None, :]
        there = real[:, None] & inside[None, :]
        codes = tl.load(
            weight + place[:, :, None] * HALF + byte[None, None, :],
            mask=there[:, :, None],
            other=0,
        )
        factor = tl.load(scale + place, mask=there, other=0.0).to(tl.float32)
        part = (codes & 15).to(tl.float32) * low[None] + offset[None]
        part += (codes >> 4).to(tl.float32) * high[None]
        sums += part * factor[:, :, None]
    total = tl.sum(tl.sum(sums, axis=2), axis=1)
    finish(total, bias, residual, out, row * 0, row, real, outputs, BIAS, RESIDUAL)


@triton.jit
def _small(
    x, weight, scale, bias, residual, out, rows, outputs, inputs, x_row,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
):  # fmt: skip
    """A few rows times COLUMNS outputs of an 8-bit weight, widened to x's dtype: exact."""
    row = tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    real, wanted = row < rows, column < outputs
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    start = weight + column.to(tl.int64)[None, :] * inputs
    for k in range(0, inputs, DEPTH):
        depth = k + tl.arange(0, DEPTH)
        inside = depth < inputs
        left = tl.load(
            x + row[:, None] * x_row + depth[None, :], mask=real[:, None] & inside[None, :], other=0
        )
        right = tl.load(start + depth[:, None], mask=inside[:, None] & wanted[None, :], other=0.0)
        total = tl.dot(left, right.to(left.dtype), total, input_precision="ieee")
    total *= tl.load(scale + column, mask=wanted, other=0.0)[None, :]
    both = real[:, None] & wanted[None, :]
    finish(total, bias, residual, out, row[:, None], column[None, :], both, outputs, BIAS, RESIDUAL)


@triton.jit
def _small_int4(
    x, weight, scale, bias, residual, out, rows, outputs, groups, x_row,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, HALF: tl.constexpr, BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
):  # fmt: skip
    """A few rows times COLUMNS outputs of an int4 weight, group by group of 2 * HALF inputs."""
    row = tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    real, wanted = row < rows, column < outputs
    byte = tl.arange(0, HALF)
    low_input = byte // 4 * 8 + byte % 4
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for group in range(0, groups):
        at = x + row[:, None] * x_row + group * (2 * HALF) + low_input[None, :]
        low = tl.load(at, mask=real[:, None], other=0.0)
        high = tl.load(at + 4, mask=real[:, None], other=0.0)
        place = column.to(tl.int64) * groups + group
        codes = tl.load(
            weight + place[None, :] * HALF + byte[:, None], mask=wanted[None, :], other=0
        )
        below = ((codes & 15).to(tl.float32) - 8.0).to(low.dtype)
        above = ((codes >> 4).to(tl.float32) - 8.0).to(low.dtype)
        part = tl.dot(low, below, input_precision="ieee")
        part = tl.dot(high, above, part, input_precision="ieee")
        total += part * tl.load(scale + place, mask=wanted, other=0.0).to(tl.float32)[None, :]
    both = real[:, None] & wanted[None, :]
    finish(total, bias, residual, out, row[:, None], column[None, :], both, outputs, BIAS, RESIDUAL)


@triton.jit
def _quantize_row(x, codes, scales, inputs, x_row, LIMIT: tl.constexpr, BLOCK: tl.constexpr):
    """One row to 8 bits, integers or floats: codes of at most LIMIT times a scale."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < inputs
    values = tl.load(x + row * x_row + at, mask=inside, other=0.0).to(tl.float32)
    # A NaN makes the whole row NaN, as it would in floats.
    broken = tl.sum(values * 0.0, axis=0)
    scale = tl.maximum(tl.max(tl.abs(values), axis=0), 1e-30) / LIMIT + broken
    scaled = values / scale
    if codes.dtype.element_ty == tl.int8:
        # Halves away from zero; the compiler has no portable rounding to even.
        scaled = tl.where(scaled < 0, tl.ceil(scaled - 0.5), tl.floor(scaled + 0.5))
    scaled = tl.where(broken == 0.0, scaled, 0.0)
    tl.store(codes + row * inputs + at, scaled.to(codes.dtype.element_ty), mask=inside)
    tl.store(scales + row, scale)


@triton.jit
def _int8_matmul(
    codes, weight, row_scale, scale, bias, residual, out, rows, outputs, inputs,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
):  # fmt: skip
    """int8 rows times int8 outputs in int32, then both scales."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    real, wanted = row < rows, column < outputs
    total = tl.zeros([ROWS, COLUMNS], tl.int32)
    left_start = codes + row.to(tl.int64)[:, None] * inputs
    right_start = weight + column.to(tl.int64)[None, :] * inputs
    for k in range(0, inputs, DEPTH):
        depth = k + tl.arange(0, DEPTH)
        inside = depth < inputs
        left = tl.load(left_start + depth[None, :], mask=real[:, None] & inside[None, :], other=0)
        right = tl.load(
            right_start + depth[:, None], mask=inside[:, None] & wanted[None, :], other=0
        )
        total = tl.dot(left, right, total, out_dtype=tl.int32)
    factor = tl.load(row_scale + row, mask=real, other=0.0)
    result = total.to(tl.float32) * factor[:, None]
    result *= tl.load(scale + column, mask=wanted, other=0.0)[None, :]
    both = real[:, None] & wanted[None, :]
    finish(
        result, bias, residual, out, row[:, None], column[None, :], both, outputs, BIAS, RESIDUAL
    )


@triton.jit
def _widen_int4(
    weight, scale, out, groups, HALF: tl.constexpr, GROUPS: tl.constexpr
):  # fmt: skip
    """One output's int4 groups, GROUPS at a time, as floats in the order of the inputs."""
    output = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    inside = (group < groups)[:, None]
    byte = tl.arange(0, HALF)[None, :]
    place = (output * groups + group)[:, None]
    codes = tl.load(weight + place * HALF + byte, mask=inside, other=0)
    factor = tl.load(scale + place, mask=inside, other=0.0).to(tl.float32)
    at = out + place * (2 * HALF) + byte // 4 * 8 + byte % 4
    dtype = out.dtype.element_ty
    tl.store(at, (((codes & 15).to(tl.float32) - 8.0) * factor).to(dtype), mask=inside)
    tl.store(at + 4, (((codes >> 4).to(tl.float32) - 8.0) * factor).to(dtype), mask=inside)


def dense(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """x [tokens, in] times weight [out, in] -> [tokens, out] in `dtype`, or else in x's."""
    if x.shape[0] == 1:
        return _one_row(x, weight, None, bias, residual, dtype or x.dtype)
    out = F.linear(x, weight, bias)
    if residual is not None:
        out += residual
    return out if dtype is None else out.to(dtype)


def int8(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """x [tokens, in] times int8 codes [out, in] times float32 scale [out] -> [tokens, out]."""
    (rows, inputs), outputs = x.shape, codes.shape[0]
    if rows <= SMALL_BATCH:
        return _few_rows(x, codes, scale, bias, residual, dtype or x.dtype)
    out = x.new_empty(rows, outputs, dtype=dtype or x.dtype)
    narrow, factors = quantize_rows(x, torch.int8)
    _int8_matmul[(triton.cdiv(rows, LARGE.rows), triton.cdiv(outputs, LARGE.columns))](
        narrow, codes, factors, scale, bias, residual, out, rows, outputs, inputs,
        ROWS=LARGE.rows, COLUMNS=LARGE.columns, DEPTH=LARGE.depth, BIAS=bias is not None,
        RESIDUAL=residual is not None, num_warps=LARGE.warps, num_stages=LARGE.stages,
    )  # fmt: skip
    return out


def fp8(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """x [tokens, in] times e4m3 codes [out, in] times float32 scale [out] -> [tokens, out].

    Many rows are multiplied by cuBLAS or CUTLASS through torch, which rounds the product to
    bfloat16; where sides are no multiples of 16, on weights widened to x's dtype.
    """
    if x.shape[0] <= SMALL_BATCH:
        return _few_rows(x, codes, scale, bias, residual, x.dtype)
    if codes.shape[0] % 16 or codes.shape[1] % 16:
        return dense(x, (codes.float() * scale[:, None]).to(x.dtype), bias, residual)
    narrow, factors = quantize_rows(x, torch.float8_e4m3fn)
    by_row = ScalingType.RowWise
    out = F.scaled_mm(
        narrow, codes.t(), factors[:, None], by_row, scale[None, :], by_row,
        output_dtype=torch.bfloat16,
    ).to(x.dtype)  # fmt: skip
    for addend in (bias, residual):
        if addend is not None:
            out += addend
    return out


def int4(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """x [tokens, in] times int4 codes [out, in / 2] with scales [out, in / group]."""
    rows, outputs, groups = x.shape[0], *scale.shape
    half = codes.shape[1] // groups
    if rows > SMALL_BATCH:
        return dense(x, widen_int4(codes, scale, x.dtype), bias, residual)
    out = x.new_empty(rows, outputs)
    flags = {"BIAS": bias is not None, "RESIDUAL": residual is not None}
    if rows == 1:
        tiles = vector_tiles(outputs)
        _vector_int4[(triton.cdiv(outputs, tiles.rows),)](
            x, codes, scale, bias, residual, out, outputs, groups,
            ROWS=tiles.rows, GROUPS=tiles.depth // (2 * half), HALF=half, **flags,
            num_warps=tiles.warps,
        )  # fmt: skip
        return out
    tiles = small_tiles(rows, outputs)
    _small_int4[(triton.cdiv(outputs, tiles.columns),)](
        x, codes, scale, bias, residual, out, rows, outputs, groups, x.stride(0),
        ROWS=tiles.rows, COLUMNS=tiles.columns, HALF=half, **flags,
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return out


def _few_rows(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Up to SMALL_BATCH rows times 8-bit weights."""
    (rows, inputs), outputs = x.shape, codes.shape[0]
    if rows == 1:
        return _one_row(x, codes, scale, bias, residual, dtype)
    out = x.new_empty(rows, outputs, dtype=dtype)
    tiles = small_tiles(rows, outputs)
    _small[(triton.cdiv(outputs, tiles.columns),)](
        x, codes, scale, bias, residual, out, rows, outputs, inputs, x.stride(0),
        ROWS=tiles.rows, COLUMNS=tiles.columns, DEPTH=tiles.depth, BIAS=bias is not None,
        RESIDUAL=residual is not None, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return out


def _one_row(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    outputs, inputs = weight.shape
    out = x.new_empty(1, outputs, dtype=dtype)
    tiles = vector_tiles(outputs)
    _vector[(triton.cdiv(outputs, tiles.rows),)](
        x, weight, scale, bias, residual, out, outputs, inputs,
        ROWS=tiles.rows, DEPTH=tiles.depth, SCALED=scale is not None, BIAS=bias is not None,
        RESIDUAL=residual is not None, num_warps=tiles.warps,
    )  # fmt: skip
    return out


def quantize_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Float [rows, n] -> codes [rows, n] in int8 or float8_e4m3fn, and float32 scales [rows]."""
    rows, inputs = x.shape
    codes = x.new_empty(rows, inputs, dtype=dtype)
    scales = x.new_empty(rows, dtype=torch.float32)
    limit = 127.0 if dtype == torch.int8 else torch.finfo(dtype).max
    _quantize_row[(rows,)](
        x, codes, scales, inputs, x.stride(0), LIMIT=limit, BLOCK=power_of_two(inputs), num_warps=8
    )
    return codes, scales


def widen_int4(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """int4 codes [out, in / 2] and scales [out, in / group] -> weights [out, in] in `dtype`."""
    outputs, groups = scale.shape
    half = codes.shape[1] // groups
    out = torch.empty(outputs, 2 * codes.shape[1], dtype=dtype, device=codes.device)
    together = 2048 // half
    _widen_int4[(outputs, triton.cdiv(groups, together))](
        codes, scale, out, groups, HALF=half, GROUPS=together, num_warps=4
    )
    return out
