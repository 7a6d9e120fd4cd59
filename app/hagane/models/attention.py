"""Attention contexts: how a batch attends, and which adapter changes which of its rows.

The caller passes one to the model: serving `Paged`, pretraining `PackedCausal`, fine-tuning
`PackedSequences`. The model is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from hagane.kernels import cpu, reference
from hagane.kernels.backend import Differentiable, Operations
from hagane.kernels.cpu.pretraining import Pretraining
from hagane.kernels.layout import PagedLayout, Scoring
from hagane.kernels.low_rank import AdapterRows


class AttentionContext(Protocol):
    """A batch, as the layers see it: `positions` int64 [tokens], linear layers and attention.

    The model calls `linear` for every projection and `attention` once per layer, in order. Example:

        context = PackedCausal(rows=2, length=16)
        hidden = transformer(ids, context)  # int64 ids [32] -> [32, hidden]
    """

    @property
    def positions(self) -> Tensor: ...

    def linear(self, layer: nn.Module, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Apply `layer` to x [tokens, in], with each row's adapter; add `residual` if given."""
        ...

    def attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> Tensor:
        """Attend with q [tokens, heads, head_dim], k and v [tokens, kv_heads, head_dim].

        Returns [tokens, heads * head_dim]; fewer rows where the context wants some alone.
        """
        ...

    def remaining(self, x: Tensor, rows: int) -> Tensor:
        """Those rows of x that attention left, if it left fewer: `rows` of them."""
        ...


@dataclass(frozen=True)
class Paged:
    """Serving: keys and values go to the paged cache, queries read it through block tables.

    `caches[layer]` is (keys, values), laid out as `operations` allocated them. `adapters` is None
    when no row of the batch has one.
    """

    positions: Tensor
    layout: PagedLayout
    caches: Sequence[tuple[Tensor, Tensor]]
    operations: Operations
    adapters: AdapterRows | None = None

    def linear(self, layer: nn.Module, x: Tensor, residual: Tensor | None = None) -> Tensor:
        changes = () if self.adapters is None else (self.adapters,)
        out: Tensor = layer(x, residual, *changes)
        return out

    def attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> Tensor:
        cache = self.caches[layer]
        return self.operations.paged_attention(q, k, v, cache, self.layout, **vars(scoring))

    def remaining(self, x: Tensor, rows: int) -> Tensor:
        return x


@dataclass(frozen=True)
class Fetching(Paged):
    """Serving with the native kernels, of tokens that each read a cache of their own.

    Their attention waits for memory, which the products before it leave idle: these fetch for it.
    """

    def attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> Tensor:
        attended = super().attention(layer, q, k, v, scoring)
        if layer + 1 < len(self.caches):
            cpu.prefetch(self.caches[layer + 1], self.layout, k.shape[1], k.shape[2])
        return attended


@dataclass(frozen=True)
class Narrowing(Paged):
    """Serving with the native kernels, where the hidden states of some rows alone are wanted.

    Behind the last layer's attention the others are dropped: the model returns those of `rows`,
    int64 and ascending, of each sequence its last ones. `ends` is the layout with these as queries,
    `changes` whose adapters they have: here, as a recorded step needs it to stay where it is.
    """

    rows: Tensor = field(kw_only=True)
    ends: PagedLayout = field(kw_only=True)
    changes: AdapterRows | None = field(kw_only=True)

    def linear(self, layer: nn.Module, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if x.shape[0] == self.positions.shape[0]:
            return super().linear(layer, x, residual)
        changes = () if self.changes is None else (self.changes,)
        out: Tensor = layer(x, residual, *changes)
        return out

    def attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> Tensor:
        layout, cache = self.layout, self.caches[layer]
        if layer == len(self.caches) - 1:
            q, layout = cpu.gather(q, self.rows), self.ends
        return self.operations.paged_attention(q, k, v, cache, layout, **vars(scoring))

    def remaining(self, x: Tensor, rows: int) -> Tensor:
        return x if x.shape[0] == rows else cpu.gather(x, self.rows)


class _Training:
    """The layers as they are: an adapter in training is part of them."""

    def linear(self, layer: nn.Module, x: Tensor, residual: Tensor | None = None) -> Tensor:
        out: Tensor = layer(x, residual)
        return out

    def remaining(self, x: Tensor, rows: int) -> Tensor:
        return x


class PackedCausal(_Training):
    """Training: `rows` rows of `length` tokens, flattened; causal within a row, no cache."""

    def __init__(self, rows: int, length: int, device: torch.device | str = "cpu") -> None:
        self.rows = rows
        self.positions = torch.arange(length, device=device).repeat(rows)

    def attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> Tensor:
        return reference.causal_attention(q, k, v, rows=self.rows, **vars(scoring))


class PackedLearning(PackedCausal):
    """As PackedCausal, where `operations` compute dense layers whose weights learn."""

    def __init__(self, rows: int, length: int, operations: Pretraining) -> None:
        super().__init__(rows, length)
        self.operations = operations

    def linear(self, layer: nn.Module, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.operations.linear(x, layer.weight, layer.bias, residual)  # type: ignore[arg-type]

    def attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> Tensor:
        return self.operations.causal_attention(q, k, v, rows=self.rows, **vars(scoring))


class PackedSequences(_Training):
    """Training: sequences of these lengths one after the other, causal, none sees another."""

    def __init__(
        self,
        lengths: Sequence[int],
        device: torch.device | str = "cpu",
        operations: Differentiable = reference,
    ) -> None:
        self.lengths = list(lengths)
        self.operations = operations
        self.positions = torch.cat([torch.arange(n, device=device) for n in self.lengths])

    def attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> Tensor:
        return self.operations.sequence_attention(q, k, v, lengths=self.lengths, **vars(scoring))
