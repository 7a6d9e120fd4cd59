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

from app.kernels import native


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


class Bank(Protocol):
    """One layer's changes by slot, as a backend wants them."""

    def size(self, parts: Sequence[Part]) -> int:
        """Bytes that `pack` will take."""
        ...

    def pack(self, parts: Sequence[Part]) -> Any:
        """What `place` wants. Allowed while a step runs: nothing of it is used yet."""
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

    def pack(self, parts: Sequence[Part]) -> list[tuple[int, Tensor, Tensor]]:
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


class NativeBank:
    """Changes packed for the native kernels (drawn in cpu/ops.h)."""

    def __init__(self, out_features: int, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._blocks = -(-out_features // native.LANES)
        self._ranks_per_unit = 4 // dtype.itemsize
        self._changes: dict[int, native.PackedChange] = {}
        self.handle = native.make_bank()

    def size(self, parts: Sequence[Part]) -> int:
        ranks = sum(part.a.shape[0] for part in parts)
        wide = self._dtype == torch.bfloat16
        inputs = native.padded(parts[0].a.shape[1], 2 * native.LANES if wide else 1)
        first, last = self._units(parts)
        lines = 4 * native.LANES * int((last - first).sum())
        return native.padded(ranks) * inputs * self._dtype.itemsize + lines

    def pack(self, parts: Sequence[Part]) -> native.PackedChange:
        factors = [part.factors(self._dtype) for part in parts]
        a = torch.cat([a for a, _ in factors])
        b = torch.zeros(self._blocks * native.LANES, native.padded(len(a)), dtype=self._dtype)
        rank = 0
        for part, (_, scaled) in zip(parts, factors, strict=True):
            out, ranks = scaled.shape
            b[part.first : part.first + out, rank : rank + ranks] = scaled
            rank += ranks
        first, last = self._units(parts)
        units = np.arange(b.shape[1] // self._ranks_per_unit)
        used = (first[:, None] <= units) & (units < last[:, None])
        lines = b.view(torch.int32).unflatten(0, (-1, native.LANES)).transpose(1, 2)
        starts = np.concatenate(([0], np.cumsum(last - first)))
        return native.pack_change(
            native.pack_dense(a),
            lines[torch.from_numpy(used)],
            torch.from_numpy(starts.astype(np.int32)),
            torch.from_numpy(first.astype(np.int32)),
        )

    def place(self, slot: int, change: native.PackedChange | None) -> None:
        native.place(self.handle, slot, change)
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
