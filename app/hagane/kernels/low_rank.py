"""Low-rank changes to the rows of a linear layer: adapters that share a step with their base.

Every row may have another adapter's change (Punica, Chen et al., 2023, arXiv:2310.18547). A layer's
changes lie in its bank, by the number ("slot") that an adapter has in the banks of all layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from hagane.kernels.arena import Arena


@dataclass(frozen=True, eq=False)
class Part:
    """Adds scale * b @ a @ x to the outputs from `first` on: a [rank, in], b [out, rank], floats.

    A fused matrix has up to three parts, in the order of their outputs. A `gain` float32 [out]
    multiplies the outputs, W x included, by 1 + gain (DoRA).
    """

    first: int
    a: Tensor
    b: Tensor
    scale: float
    gain: Tensor | None = None

    def factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """a and what its result is multiplied by, in `dtype`."""
        b = self.b.float() * self.scale
        if self.gain is not None:
            b *= (1 + self.gain)[:, None]
        return self.a.to(dtype), b.to(dtype)


@dataclass(frozen=True, eq=False)
class AdapterRows:
    """The adapter of each row of a step: `slots` int32 [tokens], -1 for none.

    `groups` holds the same as (slot, int64 rows), for operators that take one adapter at a time.
    """

    slots: Tensor
    groups: tuple[tuple[int, Tensor], ...] = ()


# Of one packed change.
MOST_TENSORS = 7


class Bank(Protocol):
    """The adapters of one layer, by slot, in a backend's own layout.

    `pack` may run in another thread while a step runs; `place` runs between two steps. Example:

        bank.place(1, bank.pack(parts))  # rows with slot 1 now use these parts
        bank.place(1, None)  # the slot is free again
    """

    def size(self, parts: Sequence[Part]) -> int:
        """Bytes that `pack` will allocate."""
        ...

    def pack(self, parts: Sequence[Part], arena: Arena | None = None) -> Any:
        """Convert `parts` to the layout that `place` takes; no step uses the result yet.

        Host memory comes from `arena`, if given, which must have room for it.
        """
        ...

    def place(self, slot: int, change: Any | None) -> None:
        """Put a packed change into a slot, between two steps. None empties the slot."""
        ...


# A packed part: its first output, a, b, and the gain.
_TorchPart = tuple[int, Tensor, Tensor, Tensor | None]


class TorchBank:
    """Changes in the dtype and on the device of the layer, for torch's operators.

    `product` computes W x without bias for changes that have a gain.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        device: torch.device,
        product: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._dtype, self._device, self._product = dtype, device, product
        self._changes: dict[int, list[_TorchPart]] = {}

    def size(self, parts: Sequence[Part]) -> int:
        counts = (p.a.numel() + p.b.numel() + (p.gain is not None) * len(p.b) for p in parts)
        return sum(counts) * self._dtype.itemsize

    def pack(self, parts: Sequence[Part], arena: Arena | None = None) -> list[_TorchPart]:
        packed: list[_TorchPart] = []
        for part in parts:
            a, b = (factor.to(self._device) for factor in part.factors(self._dtype))
            gain = None if part.gain is None else part.gain.to(self._device, self._dtype)
            packed.append((part.first, a, b, gain))
        return packed

    def place(self, slot: int, change: list[_TorchPart] | None) -> None:
        if change is None:
            self._changes.pop(slot, None)
        else:
            self._changes[slot] = change

    def add(self, out: Tensor, x: Tensor, rows: AdapterRows) -> Tensor:
        """`out` [tokens, out], to which each row of x [tokens, in] has added its change."""
        for slot, numbers in rows.groups:
            for first, a, b, gain in self._changes.get(slot, ()):
                own = x[numbers]
                added = own @ a.T @ b.T
                if gain is not None and self._product is not None:
                    added += gain * self._product(own)[:, first : first + len(b)]
                out[:, first : first + b.shape[0]].index_add_(0, numbers, added)
        return out
