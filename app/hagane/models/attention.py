"""Attention contexts: how a batch attends, and which adapter changes which of its rows.

The caller passes one to the model: serving `Paged`, pretraining `PackedCausal`, fine-tuning
`PackedSequences` or `SharedPrompts`. The model is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hagane.kernels import cpu, reference
from hagane.kernels.backend import Differentiable, Operations
from hagane.kernels.cpu.pretraining import Pretraining
from hagane.kernels.layout import PagedLayout, Scoring
from hagane.kernels.low_rank import AdapterRows

# Cosines and sines of a layer's rotation; None where it has none.
Rotation = tuple[Tensor, Tensor] | tuple[None, None]


class Sinks(nn.Module):
    """The sinks of a layer's attention: float32 [heads], not trained."""

    weight: Tensor

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(heads))
        self.stored_shape = (heads,)

    def score(self, scoring: Scoring) -> Scoring:
        """`scoring` with these sinks."""
        return replace(scoring, sinks=self.weight)


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
        """Attend with q [queries, heads, head_dim] to k and v [tokens, kv_heads, head_dim].

        Returns [queries, heads * head_dim]. There is a query for every token, except in the context
        of a `RowSelection`. v may be the first features of k, where the cache of the layer shares
        them: then heads of the result are as wide.
        """
        ...


@dataclass(frozen=True)
class Paged:
    """Serving: keys and values go to the paged cache, queries read it through block tables.

    `caches[layer]` is (keys, values), laid out as `operations` allocated them. `adapters` is None
    when no row of the batch has one. With `prefetch`, for the native kernels alone, the products
    between two attentions prefetch the cache that the next one reads: attention waits for memory,
    which the products leave idle.
    """

    positions: Tensor
    layout: PagedLayout
    caches: Sequence[tuple[Tensor, Tensor]]
    operations: Operations
    adapters: AdapterRows | None = None
    prefetch: bool = False

    def linear(self, layer: nn.Module, x: Tensor, residual: Tensor | None = None) -> Tensor:
        changes = () if self.adapters is None else (self.adapters,)
        out: Tensor = layer(x, residual, *changes)
        return out

    def attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> Tensor:
        cache = self.caches[layer]
        attended = self.operations.paged_attention(q, k, v, cache, self.layout, **vars(scoring))
        if self.prefetch and layer + 1 < len(self.caches):
            cpu.prefetch(self.caches[layer + 1], self.layout, k.shape[1], k.shape[2])
        return attended


@dataclass(frozen=True)
class RowSelection:
    """The rows of a batch whose hidden states are wanted, for the native kernels.

    The last layer computes keys and values of all rows, and drops the other rows before it attends.
    `rows` are int64 and ascending, of each sequence its last ones. `context` is that of these rows
    alone: their positions, their adapters, and a layout with them as the queries. Example:

        hidden = transformer(ids, context, RowSelection(rows, ends))  # [len(rows), hidden]
    """

    rows: Tensor
    context: Paged

    def take(self, x: Tensor) -> Tensor:
        """The selected rows of x [tokens, ...]."""
        return cpu.gather(x, self.rows)


class _Training:
    """The layers as they are: an adapter in training is part of them."""

    def linear(self, layer: nn.Module, x: Tensor, residual: Tensor | None = None) -> Tensor:
        out: Tensor = layer(x, residual)
        return out


class PackedCausal(_Training):
    """Training: `rows` rows of `length` tokens, flattened; causal within a row, no cache."""

    def __init__(self, rows: int, length: int, device: torch.device | str = "cpu") -> None:
        self.rows = rows
        self.positions = torch.arange(length, device=device).repeat(rows)

    def attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> Tensor:
        return reference.causal_attention(q, k, v, rows=self.rows, **vars(scoring))


class PackedPretraining(PackedCausal):
    """As PackedCausal, where `operations` compute dense layers whose weights are trained."""

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


class SharedPrompts(_Training):
    """Training: prompts, each followed by its answers, which see the prompt and themselves.

    `groups` are the tokens of a prompt and of each of its answers. A prompt goes through the layers
    once; only in attention is it repeated, which the backward pass does again instead of keeping
    it. Example:

        context = SharedPrompts([(50, [6, 9])])
        hidden = transformer(ids, context)  # int64 ids [65] -> [65, hidden]
    """

    def __init__(
        self,
        groups: Sequence[tuple[int, Sequence[int]]],
        device: torch.device | str = "cpu",
        operations: Differentiable = reference,
    ) -> None:
        self.groups, self.operations = groups, operations
        # The rows of prompts and answers as they lie, and once more with the prompts repeated.
        self.lengths = [n for prompt, answers in groups for n in (prompt, *answers)]
        self.repeated = [n for prompt, answers in groups for a in answers for n in (prompt, a)]
        parts = [
            part
            for prompt, answers in groups
            for part in ((0, prompt), *((prompt, prompt + n) for n in answers))
        ]
        self.positions = torch.cat([torch.arange(*part, device=device) for part in parts])

    def attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> Tensor:
        lengths = [a + b for a, b in zip(self.repeated[::2], self.repeated[1::2], strict=True)]

        def attend(*tensors: Tensor) -> Tensor:
            whole = [self._repeat(x) for x in tensors]
            out = self.operations.sequence_attention(*whole, lengths=lengths, **vars(scoring))
            return self._drop(out)

        if not torch.is_grad_enabled():
            return attend(q, k, v)
        out: Tensor = checkpoint(attend, q, k, v, use_reentrant=False, preserve_rng_state=False)
        return out

    def _repeat(self, x: Tensor) -> Tensor:
        """Rows of prompts and answers [tokens, ...] -> whole sequences, one for each answer."""
        parts = iter(x.split(self.lengths))
        whole = []
        for _, answers in self.groups:
            prompt = next(parts)
            for _ in answers:
                whole += [prompt, next(parts)]
        return torch.cat(whole)

    def _drop(self, x: Tensor) -> Tensor:
        """The rows of `_repeat`, each prompt's once."""
        parts = iter(x.split(self.repeated))
        kept = []
        for _, answers in self.groups:
            for number in range(len(answers)):
                prompt = next(parts)
                kept += [next(parts)] if number else [prompt, next(parts)]
        return torch.cat(kept)
