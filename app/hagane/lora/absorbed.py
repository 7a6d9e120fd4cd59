"""Adapters on latent attention's matrix of keys and values, where it serves over latents.

With W + scale * B A in the place of W (`models/latent_heads.py`), each head's products have
low-rank changes of their own: B A turned around for its queries, and its rows of B for its result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hagane.kernels.arena import Arena
from hagane.kernels.cpu.low_rank import NativeBank, PackedChange
from hagane.kernels.low_rank import MOST_TENSORS, Part
from hagane.models.latent_heads import AbsorbedHeads


class AbsorbedBank:
    """A bank for each product of each head; takes changes of the whole matrix, without gains."""

    def __init__(self, heads: AbsorbedHeads) -> None:
        self._plain, self._width = heads.plain, heads.width
        for products in (heads.keys, heads.values):
            products.banks = tuple(NativeBank(weight) for weight in products.weights)
        self._banks = (*heads.keys.banks, *heads.values.banks)

    def size(self, parts: Sequence[Part]) -> int:
        """Bytes of the change, which are the same for each head."""
        heads = len(self._banks) // 2
        first = self._split([replace(part, b=part.b[: self._width]) for part in parts])
        return heads * sum(map(NativeBank.size, self._banks[::heads], first))

    def pack(self, parts: Sequence[Part], arena: Arena | None = None) -> list[PackedChange]:
        """In memory of its own: these are more tensors than other layers have."""
        own = Arena(Arena.room(self.size(parts), MOST_TENSORS * len(self._banks)))
        split = self._split(parts)
        return [bank.pack(found, own) for bank, found in zip(self._banks, split, strict=True)]

    def place(self, slot: int, change: list[PackedChange] | None) -> None:
        changes = [None] * len(self._banks) if change is None else change
        for bank, own in zip(self._banks, changes, strict=True):
            bank.place(slot, own)

    def _split(self, parts: Sequence[Part]) -> list[list[Part]]:
        """The changes of all heads' queries, then of their results."""
        (part,) = parts
        by_head = part.b.unflatten(0, (-1, self._width))
        queries = [replace(part, a=b[: self._plain].t(), b=part.a.t()) for b in by_head]
        results = [replace(part, b=b[self._plain :]) for b in by_head]
        return [[found] for found in (*queries, *results)]
