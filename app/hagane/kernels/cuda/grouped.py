"""Linear layers on the codes of files: GGUF's blocks, GPTQ, AWQ, compressed-tensors, MXFP4.

A weight is scale * (code - zero), plus the group's minimum if there are any, rounded to the inputs'
dtype: products are those of the dequantized weights. Codes of 4 bits are two to a byte, in bytes of
4 the lower halves of 8 inputs before the upper ones; others take a byte each. One row is bound by
the codes' bytes and needs no tensor cores; up to 64 rows are multiplied by them on weights widened
in registers; more by cuBLAS on weights widened to memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from hagane.kernels.cuda.linear import dense, finish
from hagane.kernels.cuda.tiles import SMALL_BATCH, small_tiles, vector_tiles


@triton.jit
def _weights(
    codes, scale, minimum, output, column, real, inputs,
    BITS: tl.constexpr, GROUP: tl.constexpr, ZERO: tl.constexpr, MINIMUM: tl.constexpr,
):  # fmt: skip
    """Float32 weights of `output` (int64) at the inputs `column`; 0 where they are not `real`."""
    if BITS == 4:
        at = output * (inputs // 2) + column // 8 * 4 + column % 4
        byte = tl.load(codes + at, mask=real, other=0).to(tl.int32)
        code = (byte >> (column % 8 // 4 * 4)) & 15
    else:
        code = tl.load(codes + output * inputs + column, mask=real, other=0).to(tl.int32)
    group = output * (inputs // GROUP) + column // GROUP
    factor = tl.load(scale + group, mask=real, other=0.0).to(tl.float32)
    value = (code.to(tl.float32) - ZERO) * factor
    if MINIMUM:
        value += tl.load(minimum + group, mask=real, other=0.0).to(tl.float32)
    return value


@triton.jit
def _vector_grouped(
    x, codes, scale, minimum, bias, residual, out, outputs, inputs,
    ROWS: tl.constexpr, DEPTH: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
    ZERO: tl.constexpr, MINIMUM: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """One row x [inputs] times ROWS outputs."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = row < outputs
    sums = tl.zeros([ROWS, DEPTH], tl.float32)
    for k in range(0, inputs, DEPTH):
        column = k + tl.arange(0, DEPTH)
        inside = column < inputs
        factor = tl.load(x + column, mask=inside, other=0.0)
        both = real[:, None] & inside[None, :]
        tile = _weights(
            codes, scale, minimum, row.to(tl.int64)[:, None], column[None, :], both, inputs,
            BITS, GROUP, ZERO, MINIMUM,
        )  # fmt: skip
        sums += tile.to(factor.dtype).to(tl.float32) * factor.to(tl.float32)[None, :]
    total = tl.sum(sums, axis=1)
    finish(total, bias, residual, out, row * 0, row, real, outputs, BIAS, RESIDUAL)


@triton.jit
def _small_grouped(
    x, codes, scale, minimum, bias, residual, out, rows, outputs, inputs, x_row,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, BITS: tl.constexpr,
    GROUP: tl.constexpr, ZERO: tl.constexpr, MINIMUM: tl.constexpr, BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
):  # fmt: skip
    """A few rows times COLUMNS outputs."""
    row = tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    real, wanted = row < rows, column < outputs
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for k in range(0, inputs, DEPTH):
        depth = k + tl.arange(0, DEPTH)
        inside = depth < inputs
        left = tl.load(
            x + row[:, None] * x_row + depth[None, :], mask=real[:, None] & inside[None, :], other=0
        )
        both = inside[:, None] & wanted[None, :]
        right = _weights(
            codes, scale, minimum, column.to(tl.int64)[None, :], depth[:, None], both, inputs,
            BITS, GROUP, ZERO, MINIMUM,
        )  # fmt: skip
        total = tl.dot(left, right.to(left.dtype), total, input_precision="ieee")
    both = real[:, None] & wanted[None, :]
    finish(total, bias, residual, out, row[:, None], column[None, :], both, outputs, BIAS, RESIDUAL)


@triton.jit
def _widen_grouped(
    codes, scale, minimum, out, inputs,
    DEPTH: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, ZERO: tl.constexpr,
    MINIMUM: tl.constexpr,
):  # fmt: skip
    """DEPTH weights of one output, as floats."""
    output = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * DEPTH + tl.arange(0, DEPTH)
    inside = column < inputs
    value = _weights(
        codes, scale, minimum, output, column, inside, inputs, BITS, GROUP, ZERO, MINIMUM
    )
    tl.store(out + output * inputs + column, value.to(out.dtype.element_ty), mask=inside)


@dataclass(frozen=True)
class GroupedMatrix:
    """A matrix [out, in] of codes, uint8 [out, in], or [out, in / 2] in 4 bits.

    `scale` and `minimum` are float16 [out, in / group]. With `order`, int64 [in], column i of the
    codes multiplies input order[i].
    """

    codes: Tensor
    scale: Tensor
    minimum: Tensor | None
    bits: int
    group: int
    zero: int
    order: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        given = (self.codes, self.scale, self.minimum, self.order)
        return tuple(tensor for tensor in given if tensor is not None)

    def multiply(self, x: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        """x [tokens, in] -> [tokens, out], with the bias and the residual added if given."""
        if self.order is not None:
            x = x[:, self.order]
        (rows, inputs), outputs = x.shape, self.codes.shape[0]
        if rows > SMALL_BATCH:
            return dense(x, self.widen(x.dtype), bias, residual)
        x = x.contiguous()
        out = x.new_empty(rows, outputs)
        flags = {**self._constants, "BIAS": bias is not None, "RESIDUAL": residual is not None}
        if rows == 1:
            tiles = vector_tiles(outputs)
            _vector_grouped[(triton.cdiv(outputs, tiles.rows),)](
                x, self.codes, self.scale, self.minimum, bias, residual, out, outputs, inputs,
                ROWS=tiles.rows, DEPTH=tiles.depth, **flags, num_warps=tiles.warps,
            )  # fmt: skip
            return out
        tiles = small_tiles(rows, outputs)
        _small_grouped[(triton.cdiv(outputs, tiles.columns),)](
            x, self.codes, self.scale, self.minimum, bias, residual, out, rows, outputs, inputs,
            x.stride(0), ROWS=tiles.rows, COLUMNS=tiles.columns, DEPTH=tiles.depth, **flags,
            num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
        return out

    def widen(self, dtype: torch.dtype) -> Tensor:
        """The weights [out, in], in the order of the codes."""
        outputs, inputs = len(self.codes), self.scale.shape[1] * self.group
        out = torch.empty(outputs, inputs, dtype=dtype, device=self.codes.device)
        _widen_grouped[(outputs, triton.cdiv(inputs, 2048))](
            self.codes, self.scale, self.minimum, out, inputs,
            DEPTH=2048, **self._constants, num_warps=4,
        )  # fmt: skip
        return out

    @property
    def _constants(self) -> dict[str, int | bool]:
        return {
            "BITS": self.bits,
            "GROUP": self.group,
            "ZERO": self.zero,
            "MINIMUM": self.minimum is not None,
        }


def pack_nibbles(codes: Tensor) -> Tensor:
    """uint8 codes below 16 [out, in] -> [out, in / 2], as the kernels read them."""
    low, high = codes.view(len(codes), -1, 2, 4).unbind(2)
    return (low | high << 4).flatten(1)
