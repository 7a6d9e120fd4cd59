"""Many adapters in one step, row by row: shrink to the rank, expand to the outputs.

After Punica (Chen et al., 2023, arXiv:2310.18547). A bank keeps a table on the device with one line
per slot: where its factors lie, and their rank (0 for none). So a step that was captured finds
other adapters the next time it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from hagane.kernels.arena import Arena
from hagane.kernels.cuda.tiles import SMALL_BATCH
from hagane.kernels.low_rank import AdapterRows, Part

# Ranks of all parts of a fused layer together, and slots, that the fixed buffers have room for.
MAX_RANKS = 1536
MAX_SLOTS = 8192
_RANKS = tl.constexpr(16)


@triton.jit
def _shrink(x, table, slots, out, inputs, x_row, MOST: tl.constexpr, DEPTH: tl.constexpr):
    """16 ranks of one row: float32 sums of x times a [ranks, inputs] of the row's slot."""
    row = tl.program_id(0)
    slot = tl.load(slots + row)
    if slot < 0:
        return
    rank = tl.program_id(1) * _RANKS + tl.arange(0, _RANKS)
    if tl.program_id(1) * _RANKS >= tl.load(table + slot * 3 + 2):
        return
    # The allocator promises this, and the compiler cannot know it: loads of 16 bytes.
    a = tl.load(table + slot * 3).to(tl.pointer_type(x.dtype.element_ty))
    a = tl.multiple_of(a, 16)
    sums = tl.zeros([_RANKS, DEPTH], tl.float32)
    for k in range(0, inputs, DEPTH):
        at = k + tl.arange(0, DEPTH)
        inside = at < inputs
        values = tl.load(x + row.to(tl.int64) * x_row + at, mask=inside, other=0.0)
        factors = tl.load(a + rank[:, None] * inputs + at[None, :], mask=inside[None, :], other=0.0)
        sums += factors.to(tl.float32) * values.to(tl.float32)[None, :]
    tl.store(out + row * MOST + rank, tl.sum(sums, axis=1))


@triton.jit
def _expand(inner, table, slots, out, outputs, MOST: tl.constexpr, BLOCK: tl.constexpr):
    """Adds b [outputs, rank] times one row's inner sums to a part of its outputs."""
    row = tl.program_id(0)
    slot = tl.load(slots + row)
    if slot < 0:
        return
    ranks = tl.multiple_of(tl.load(table + slot * 3 + 2), 16).to(tl.int32)
    if ranks == 0:
        return
    b = tl.load(table + slot * 3 + 1).to(tl.pointer_type(out.dtype.element_ty))
    b = tl.multiple_of(b, 16)
    output = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = output < outputs
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, ranks, _RANKS):
        rank = first + tl.arange(0, _RANKS)
        factors = tl.load(
            b + output.to(tl.int64)[:, None] * ranks + rank[None, :],
            mask=inside[:, None],
            other=0.0,
        )
        values = tl.load(inner + row * MOST + rank)
        total += tl.sum(factors.to(tl.float32) * values[None, :], axis=1)
    at = out + row.to(tl.int64) * outputs + output
    base = tl.load(at, mask=inside, other=0.0)
    tl.store(at, (base.to(tl.float32) + total).to(base.dtype), mask=inside)


@dataclass(frozen=True, eq=False)
class Change:
    """All parts of a layer's change as one: a [ranks, in], b [out, ranks], zeros between parts.

    Ranks are filled up with zeros to a multiple of 16, so that rows of b are aligned.
    """

    a: Tensor
    b: Tensor


class CudaBank:
    """Changes in the layer's dtype on its device."""

    def __init__(self, out_features: int, dtype: torch.dtype, device: torch.device) -> None:
        self._out_features, self._dtype, self._device = out_features, dtype, device
        self._changes: dict[int, Change] = {}
        self._table = torch.zeros(MAX_SLOTS, 3, dtype=torch.int64, device=device)

    def size(self, parts: Sequence[Part]) -> int:
        ranks = _padded(sum(part.a.shape[0] for part in parts))
        return ranks * (parts[0].a.shape[1] + self._out_features) * self._dtype.itemsize

    def pack(self, parts: Sequence[Part], arena: Arena | None = None) -> Change:
        """Raises ValueError for more ranks than a step has room for."""
        factors = [part.factors(self._dtype) for part in parts]
        total = sum(len(a) for a, _ in factors)
        if total > MAX_RANKS:
            raise ValueError(f"a layer's change has rank {total} in all, {MAX_RANKS} is the most")
        a = torch.zeros(_padded(total), factors[0][0].shape[1], dtype=self._dtype)
        torch.cat([a for a, _ in factors], out=a[:total])
        b = torch.zeros(self._out_features, len(a), dtype=self._dtype)
        rank = 0
        for part, (_, scaled) in zip(parts, factors, strict=True):
            out, ranks = scaled.shape
            b[part.first : part.first + out, rank : rank + ranks] = scaled
            rank += ranks
        return Change(a.to(self._device), b.to(self._device))

    def place(self, slot: int, change: Change | None) -> None:
        if change is None:
            self._changes.pop(slot, None)
            self._table[slot] = 0
            return
        self._changes[slot] = change
        line = (change.a.data_ptr(), change.b.data_ptr(), change.a.shape[0])
        self._table[slot] = torch.tensor(line, device=self._device)

    def add(self, out: Tensor, x: Tensor, rows: AdapterRows) -> Tensor:
        """`out` [tokens, out], to which each row of x [tokens, in] has added its change."""
        if x.shape[0] > SMALL_BATCH and rows.groups:
            return self._add_by_adapter(out, x, rows)
        count, inputs = x.shape
        inner = x.new_empty(count, MAX_RANKS, dtype=torch.float32)
        _shrink[(count, MAX_RANKS // _RANKS.value)](
            x, self._table, rows.slots, inner, inputs, x.stride(0),
            MOST=MAX_RANKS, DEPTH=256, num_warps=4,
        )  # fmt: skip
        block = 256
        _expand[(count, triton.cdiv(self._out_features, block))](
            inner, self._table, rows.slots, out, self._out_features,
            MOST=MAX_RANKS, BLOCK=block, num_warps=4,
        )  # fmt: skip
        return out

    def _add_by_adapter(self, out: Tensor, x: Tensor, rows: AdapterRows) -> Tensor:
        """Many rows of few adapters: tensor cores, one adapter after the other."""
        for slot, numbers in rows.groups:
            change = self._changes.get(slot)
            if change is not None:
                out.index_add_(0, numbers, x[numbers] @ change.a.T @ change.b.T)
        return out


def _padded(ranks: int) -> int:
    size: int = _RANKS.value
    return -(-ranks // size) * size
