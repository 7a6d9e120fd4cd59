"""A layer of serving inside a model in training: one adapter, the one that is trained."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hagane.kernels import cpu
from hagane.kernels.cpu.low_rank import NativeBank
from hagane.kernels.low_rank import AdapterRows, Part
from hagane.lora.absorbed import AbsorbedBank
from hagane.models.latent_heads import AbsorbedHeads, HeadProducts


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


class _ServedProducts(nn.Module):
    def __init__(self, products: HeadProducts, changed: Callable[[], bool]) -> None:
        super().__init__()
        self._products, self._changed = products, changed

    def forward(self, x: Tensor, residual: None = None) -> Tensor:
        rows = None
        if self._changed():
            rows = AdapterRows(torch.zeros(len(x), dtype=torch.int32))
        out: Tensor = self._products(x, None, rows)
        return out


class ServedHeads(nn.Module):
    """Latent attention's products as serving computes them, with the adapter in slot 0.

    `changed` says whether they are to have it.
    """

    def __init__(self, heads: AbsorbedHeads, changed: Callable[[], bool]) -> None:
        super().__init__()
        self._bank = AbsorbedBank(heads)
        self.keys = _ServedProducts(heads.keys, changed)
        self.values = _ServedProducts(heads.values, changed)

    def place(self, parts: list[Part]) -> None:
        """Compute with these changes of the whole matrix from now on."""
        self._bank.place(0, self._bank.pack(parts))
