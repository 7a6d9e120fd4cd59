"""Low-rank changes in the layout of the C++ kernels (drawn in ops.h)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hagane.kernels import reference
from hagane.kernels.arena import Arena
from hagane.kernels.cpu import extension
from hagane.kernels.cpu.packing import (
    LANES,
    PackedWeight,
    pack_dense,
    pack_int8,
    padded,
    quantize_rows,
)
from hagane.kernels.low_rank import MOST_TENSORS, Part


@dataclass(frozen=True, eq=False)
class PackedChange:
    """The change of a matrix by an adapter, in the kernels' layout (drawn in cpu/ops.h)."""

    a: PackedWeight
    tensors: tuple[Tensor, ...]
    handle: extension.LowRank

    @property
    def nbytes(self) -> int:
        return self.a.nbytes + sum(tensor.nbytes for tensor in self.tensors)


def pack_change(
    a: PackedWeight,
    b: Tensor,
    first_line: Tensor,
    first_unit: Tensor,
    scale: Tensor | None,
    gain: Tensor | None,
) -> PackedChange:
    """b int32 [lines, 16]; int32 [blocks + 1] and [blocks]; `scale`, for int8, and `gain` float32
    [blocks * 16].
    """
    tensors = (b, first_line, first_unit)
    kept = (*tensors, *(t for t in (scale, gain) if t is not None))
    handle = extension.low_rank(a.handle, *tensors, scale)
    if gain is not None:
        extension.set_gain(handle, gain)
    return PackedChange(a, kept, handle)


class NativeBank:
    """Changes packed for the native kernels (drawn in cpu/ops.h), by what the matrix computes with.

    On an int8 or int4 matrix, which sees its inputs in 8 bits, factors have 8 bits too: a rank of a
    and an output of b have a scale each.
    """

    def __init__(self, weight: PackedWeight) -> None:
        self._dtype, self._rotation = weight.inputs, weight.rotation
        self._blocks = -(-weight.out_features // LANES)
        self._ranks_per_unit = 4 // self._dtype.itemsize
        self._changes: dict[int, PackedChange] = {}
        self.handle = extension.bank()

    def size(self, parts: Sequence[Part]) -> int:
        ranks = padded(sum(part.a.shape[0] for part in parts))
        wide = self._dtype != torch.float32
        inputs = padded(parts[0].a.shape[1], LANES * self._ranks_per_unit if wide else 1)
        first, last = self._units(parts)
        lines = 4 * LANES * int((last - first).sum())
        places = 4 * (2 * self._blocks + 1)
        scales = 4 * (ranks + self._blocks * LANES) if self._dtype == torch.int8 else 0
        gains = 4 * self._blocks * LANES if any(part.gain is not None for part in parts) else 0
        return ranks * inputs * self._dtype.itemsize + lines + places + scales + gains

    def pack(self, parts: Sequence[Part], arena: Arena | None = None) -> PackedChange:
        arena = arena or Arena(Arena.room(self.size(parts), MOST_TENSORS))
        ranks = sum(part.a.shape[0] for part in parts)
        factors = [part.factors(torch.float32) for part in parts]
        # All ranks are computed whole blocks at a time, and those past the end as zeros.
        a = torch.zeros(padded(ranks), parts[0].a.shape[1])
        torch.cat([a for a, _ in factors], out=a[:ranks])
        b = torch.zeros(self._blocks * LANES, len(a))
        rank = 0
        for part, (_, scaled) in zip(parts, factors, strict=True):
            out, own = scaled.shape
            b[part.first : part.first + out, rank : rank + own] = scaled
            rank += own
        first, last = self._units(parts)
        units = np.arange(b.shape[1] // self._ranks_per_unit)
        used = (first[:, None] <= units) & (units < last[:, None])
        lines, scale = self._lines(b)
        gain = self._gain(parts)
        starts = np.concatenate(([0], np.cumsum(last - first)))
        return pack_change(
            self._pack_a(a, arena),
            arena.put(lines[torch.from_numpy(used)]),
            arena.put(torch.from_numpy(starts.astype(np.int32))),
            arena.put(torch.from_numpy(first.astype(np.int32))),
            None if scale is None else arena.put(scale),
            None if gain is None else arena.put(gain),
        )

    def _gain(self, parts: Sequence[Part]) -> Tensor | None:
        """Float32 [blocks * 16], 0 for outputs that keep their own."""
        if all(part.gain is None for part in parts):
            return None
        gain = torch.zeros(self._blocks * LANES)
        for part in parts:
            if part.gain is not None:
                gain[part.first : part.first + len(part.b)] = part.gain
        return gain

    def _pack_a(self, a: Tensor, arena: Arena) -> PackedWeight:
        if self._dtype == torch.int8:
            # It multiplies the rows that the matrix has prepared.
            turned = reference.hadamard(a, self._rotation) if self._rotation else a
            return pack_int8(*quantize_rows(turned), arena=arena)
        return pack_dense(a.to(self._dtype), arena=arena)

    def _lines(self, b: Tensor) -> tuple[Tensor, Tensor | None]:
        """Float32 b [blocks * 16, ranks] as int32 lines [blocks, units, 16], and their scale."""
        codes, scale = quantize_rows(b) if self._dtype == torch.int8 else (b, None)
        units = codes.to(self._dtype).view(torch.int32)
        return units.unflatten(0, (-1, LANES)).transpose(1, 2), scale

    def place(self, slot: int, change: PackedChange | None) -> None:
        # Kept alive below as long as it is there.
        extension.place(self.handle, slot, None if change is None else change.handle)
        if change is None:
            self._changes.pop(slot, None)
        else:
            self._changes[slot] = change

    def _units(self, parts: Sequence[Part]) -> tuple[np.ndarray, np.ndarray]:
        """For every block of 16 outputs the first and the last unit of ranks, exclusive."""
        first = np.full(self._blocks, np.iinfo(np.int64).max)
        last = np.zeros(self._blocks, dtype=np.int64)
        rank = 0
        for part in parts:
            out, ranks = part.b.shape
            blocks = slice(part.first // LANES, -(-(part.first + out) // LANES))
            first[blocks] = np.minimum(first[blocks], rank // self._ranks_per_unit)
            last[blocks] = -(-(rank + ranks) // self._ranks_per_unit)
            rank += ranks
        return np.minimum(first, last), last
