"""Low-rank changes to the rows of a linear layer: adapters that share a step with their base.

Every row may have another adapter's change (Punica, Chen et al., 2023, arXiv:2310.18547). A layer's
changes lie in its bank, by the number ("slot") that an adapter has in the banks of all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hagane.kernels import native
from hagane.kernels.arena import Arena
from hagane.kernels.native import _cpu  # type: ignore[attr-defined]


@dataclass(frozen=True, eq=False)
class Part:
    """Adds scale * b @ a @ x to the outputs from `first` on: a [rank, in], b [out, rank], floats.

    A fused matrix has up to three parts, in the order of their outputs.
    """

    first: int
    a: Tensor
    b: Tensor
    scale: float

    def factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """a and scale * b in `dtype`."""
        return self.a.to(dtype), (self.b.float() * self.scale).to(dtype)


@dataclass(frozen=True, eq=False)
class AdapterRows:
    """Whose change each row of a step gets: `slots` int32 [tokens], -1 for nobody's.

    `groups` says the same as (slot, int64 rows), for operators that take one adapter at a time.
    """

    slots: Tensor
    groups: tuple[tuple[int, Tensor], ...] = ()


# Of one packed change.
MOST_TENSORS = 6


class Bank(Protocol):
    """One layer's changes by slot, as a backend wants them."""

    def size(self, parts: Sequence[Part]) -> int:
        """Bytes that `pack` will take."""
        ...

    def pack(self, parts: Sequence[Part], arena: Arena | None = None) -> Any:
        """What `place` wants. Allowed while a step runs: nothing of it is used yet.

        What stays on the host lies in `arena`, which has room for it.
        """
        ...

    def place(self, slot: int, change: Any | None) -> None:
        """Between two steps. None empties the slot and frees what was there."""
        ...


class TorchBank:
    """Changes in the dtype and on the device of the layer, for torch's operators."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._changes: dict[int, list[tuple[int, Tensor, Tensor]]] = {}

    def size(self, parts: Sequence[Part]) -> int:
        return sum(part.a.numel() + part.b.numel() for part in parts) * self._dtype.itemsize

    def pack(
        self, parts: Sequence[Part], arena: Arena | None = None
    ) -> list[tuple[int, Tensor, Tensor]]:
        factors = [(part.first, *part.factors(self._dtype)) for part in parts]
        return [(first, a.to(self._device), b.to(self._device)) for first, a, b in factors]

    def place(self, slot: int, change: list[tuple[int, Tensor, Tensor]] | None) -> None:
        if change is None:
            self._changes.pop(slot, None)
        else:
            self._changes[slot] = change

    def add(self, out: Tensor, x: Tensor, rows: AdapterRows) -> Tensor:
        """`out` [tokens, out], to which each row of x [tokens, in] has added its change."""
        for slot, numbers in rows.groups:
            for first, a, b in self._changes.get(slot, ()):
                added = x[numbers] @ a.T @ b.T
                out[:, first : first + b.shape[0]].index_add_(0, numbers, added)
        return out


@dataclass(frozen=True, eq=False)
class PackedChange:
    """What an adapter adds to a matrix, in the kernels' layout (drawn in cpu/ops.h)."""

    a: native.PackedWeight
    tensors: tuple[Tensor, ...]
    handle: Any

    @property
    def nbytes(self) -> int:
        return self.a.nbytes + sum(tensor.nbytes for tensor in self.tensors)


def pack_change(
    a: native.PackedWeight, b: Tensor, first_line: Tensor, first_unit: Tensor, scale: Tensor | None
) -> PackedChange:
    """b int32 [lines, 16]; int32 [blocks + 1] and [blocks]; for int8 a float32 [blocks * 16]."""
    tensors = (b, first_line, first_unit)
    pointers = [0 if t is None else t.data_ptr() for t in (*tensors, scale)]
    kept = tensors if scale is None else (*tensors, scale)
    return PackedChange(a, kept, _cpu.low_rank(a.handle, *pointers))


class NativeBank:
    """Changes packed for the native kernels (drawn in cpu/ops.h), by what the matrix computes with.

    On an int8 or int4 matrix, which sees its inputs in 8 bits, factors have 8 bits too: a rank of a
    and an output of b have a scale each.
    """

    def __init__(self, weight: native.PackedWeight) -> None:
        self._dtype = weight.inputs
        self._blocks = -(-weight.out_features // native.LANES)
        self._ranks_per_unit = 4 // self._dtype.itemsize
        self._changes: dict[int, PackedChange] = {}
        self.handle = _cpu.bank()

    def size(self, parts: Sequence[Part]) -> int:
        ranks = native.padded(sum(part.a.shape[0] for part in parts))
        wide = self._dtype != torch.float32
        inputs = native.padded(
            parts[0].a.shape[1], native.LANES * self._ranks_per_unit if wide else 1
        )
        first, last = self._units(parts)
        lines = 4 * native.LANES * int((last - first).sum())
        places = 4 * (2 * self._blocks + 1)
        scales = 4 * (ranks + self._blocks * native.LANES) if self._dtype == torch.int8 else 0
        return ranks * inputs * self._dtype.itemsize + lines + places + scales

    def pack(self, parts: Sequence[Part], arena: Arena | None = None) -> PackedChange:
        arena = arena or Arena(Arena.room(self.size(parts), MOST_TENSORS))
        ranks = sum(part.a.shape[0] for part in parts)
        factors = [part.factors(torch.float32) for part in parts]
        # All ranks are computed whole blocks at a time, and those that are none as zeros.
        a = torch.zeros(native.padded(ranks), parts[0].a.shape[1])
        torch.cat([a for a, _ in factors], out=a[:ranks])
        b = torch.zeros(self._blocks * native.LANES, len(a))
        rank = 0
        for part, (_, scaled) in zip(parts, factors, strict=True):
            out, own = scaled.shape
            b[part.first : part.first + out, rank : rank + own] = scaled
            rank += own
        first, last = self._units(parts)
        units = np.arange(b.shape[1] // self._ranks_per_unit)
        used = (first[:, None] <= units) & (units < last[:, None])
        lines, scale = self._lines(b)
        starts = np.concatenate(([0], np.cumsum(last - first)))
        return pack_change(
            self._pack_a(a, arena),
            arena.put(lines[torch.from_numpy(used)]),
            arena.put(torch.from_numpy(starts.astype(np.int32))),
            arena.put(torch.from_numpy(first.astype(np.int32))),
            None if scale is None else arena.put(scale),
        )

    def _pack_a(self, a: Tensor, arena: Arena) -> native.PackedWeight:
        if self._dtype == torch.int8:
            return native.pack_int8(*native.quantize_rows(a), arena=arena)
        return native.pack_dense(a.to(self._dtype), arena=arena)

    def _lines(self, b: Tensor) -> tuple[Tensor, Tensor | None]:
        """Float32 b [blocks * 16, ranks] as int32 lines [blocks, units, 16], and their scale."""
        codes, scale = native.quantize_rows(b) if self._dtype == torch.int8 else (b, None)
        units = codes.to(self._dtype).view(torch.int32)
        return units.unflatten(0, (-1, native.LANES)).transpose(1, 2), scale

    def place(self, slot: int, change: PackedChange | None) -> None:
        # Kept alive below as long as it is there.
        _cpu.place(self.handle, slot, None if change is None else change.handle)
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
            blocks = slice(part.first // native.LANES, -(-(part.first + out) // native.LANES))
            first[blocks] = np.minimum(first[blocks], rank // self._ranks_per_unit)
            last[blocks] = -(-(rank + ranks) // self._ranks_per_unit)
            rank += ranks
        return np.minimum(first, last), last
