"""A layer of serving inside a model in training: one adapter, the one that is trained."""

from __future__ import annotations

import torch
from torch import Tensor

from hagane.kernels import cpu
from hagane.kernels.cpu.low_rank import NativeBank
from hagane.kernels.low_rank import Part


class ServedProduct:
    """A layer as serving computes it: its packed matrix, and the adapter in slot 0 of a bank."""

    def __init__(self, weight: cpu.PackedWeight) -> None:
        self._weight, self._bank = weight, NativeBank(weight)

    def place(self, parts: list[Part]) -> None:
        """Compute with these changes from now on."""
        self._bank.place(0, self._bank.pack(parts))

    def __call__(self, x: Tensor, residual: Tensor | None, *, changed: bool) -> Tensor:
        changes = None
        if changed:
            changes = self._bank.handle, torch.zeros(len(x), dtype=torch.int32)
        return cpu.linear(x.contiguous(), self._weight, residual=residual, changes=changes)
