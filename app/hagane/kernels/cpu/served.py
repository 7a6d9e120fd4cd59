"""The operations of training whose values are those of serving, bit for bit.

Gradients are those of `training`: an operation that sums in another order there computes its
training form once more in the backward pass, and only its gradients are used (a straight-through
estimate, Bengio et al., 2013, arXiv:1308.3432). What is learned from is then exactly what answered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hagane.kernels.cpu import operations, training
from hagane.kernels.cpu.operations import (
    allocate_cache,
    argmax,
    heaviest,
    paged_attention,
    restrict,
    rope_tables,
    sample,
    samples,
)
from hagane.kernels.cpu.training import (
    causal_attention,
    gate_rows,
    narrow_heads,
    route,
    silu_and_mul,
)
from hagane.kernels.layout import PagedLayout

__all__ = [
    "activate",
    "allocate_cache",
    "apply_rope",
    "argmax",
    "causal_attention",
    "gate_rows",
    "heaviest",
    "latent_heads",
    "layer_norm",
    "narrow_heads",
    "paged_attention",
    "restrict",
    "rms_norm",
    "rope_tables",
    "route",
    "sample",
    "samples",
    "scaled_add",
    "sequence_attention",
    "silu_and_mul",
    "softcap",
    "token_scores",
]

# Tokens of a block of the cache through which sequences attend.
_BLOCK = 16


class _StraightThrough(torch.autograd.Function):
    """The value of one function and the gradients of another, both of the same tensors."""

    @staticmethod
    def forward(
        ctx: Any, value: Callable[..., Any], trained: Callable[..., Any], *tensors: Tensor
    ) -> Any:
        ctx.trained = trained
        ctx.save_for_backward(*tensors)
        return value(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            tensors = [t.detach().requires_grad_() for t in ctx.saved_tensors]
            out = ctx.trained(*tensors)
        return None, None, *torch.autograd.grad(out, tensors, grads)


def _straight_through(
    value: Callable[..., Any], trained: Callable[..., Any], *tensors: Tensor
) -> Any:
    contiguous = [tensor.contiguous() for tensor in tensors]
    return _StraightThrough.apply(value, trained, *contiguous)  # type: ignore[no-untyped-call]


class _ValueOf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, trained: Tensor, value: Tensor) -> Tensor:
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def with_value_of(value: Tensor, trained: Tensor) -> Tensor:
    """`value`, whose gradients are those of `trained`: both are computed already."""
    out: Tensor = _ValueOf.apply(trained, value)  # type: ignore[no-untyped-call]
    return out


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, offset: float = 0.0, residual: Tensor | None = None
) -> Tensor:
    if not offset and residual is None:
        return training.rms_norm(x, weight, eps)

    def value(x: Tensor, *added: Tensor) -> Tensor:
        return operations.rms_norm(x, weight, eps, offset, *added)

    def trained(x: Tensor, *added: Tensor) -> Tensor:
        return training.rms_norm(x, weight, eps, offset, *added)

    added = () if residual is None else (residual,)
    out: Tensor = _straight_through(value, trained, x, *added)
    return out


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    options: dict[str, Any] = {"weight": weight, "bias": bias, "eps": eps}
    out: Tensor = _straight_through(
        partial(operations.layer_norm, **options), partial(training.layer_norm, **options), x
    )
    return out


def activate(x: Tensor, kind: str, *, gated: bool) -> Tensor:
    options: dict[str, Any] = {"kind": kind, "gated": gated}
    out: Tensor = _straight_through(
        partial(operations.activate, **options), partial(training.activate, **options), x
    )
    return out


def scaled_add(x: Tensor, factor: float, residual: Tensor | None = None) -> Tensor:
    def value(x: Tensor, *added: Tensor) -> Tensor:
        return operations.scaled_add(x, factor, *added)

    def trained(x: Tensor, *added: Tensor) -> Tensor:
        return training.scaled_add(x, factor, *added)

    added = () if residual is None else (residual,)
    out: Tensor = _straight_through(value, trained, x, *added)
    return out


def softcap(logits: Tensor, scale: float, cap: float) -> Tensor:
    """Without gradients: those of a frozen head are computed with its logits."""
    return operations.softcap(logits, scale, cap)


def apply_rope(
    qkv: Tensor, cos: Tensor | None, sin: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    def value(qkv: Tensor) -> tuple[Tensor, ...]:
        # `operations` rotates in place.
        return operations.apply_rope(qkv.clone(), cos, sin, **options)

    def trained(qkv: Tensor) -> tuple[Tensor, ...]:
        return training.apply_rope(qkv, cos, sin, **options)

    q, k, v = _straight_through(value, trained, qkv)
    return q, k, v


def latent_heads(
    q: Tensor, kv: Tensor, shared: Tensor, cos: Tensor, sin: Tensor, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    def value(q: Tensor, kv: Tensor, shared: Tensor) -> tuple[Tensor, ...]:
        # `operations` rotates in place.
        return operations.latent_heads(q.clone(), kv, shared, cos, sin, **options)

    def trained(q: Tensor, kv: Tensor, shared: Tensor) -> tuple[Tensor, ...]:
        return training.latent_heads(q, kv, shared, cos, sin, **options)

    q, k, v = _straight_through(value, trained, q, kv, shared)
    return q, k, v


def sequence_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    lengths: Sequence[int],
    window: int | None,
    scale: float | None = None,
    cap: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """`reference.sequence_attention`, through a cache as serving attends.

    v narrower than k are its first features: of these there are values, and no gradients.
    """
    options: dict[str, Any] = {"window": window, "scale": scale, "cap": cap, "sinks": sinks}

    def value(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        layout = _layout(lengths)
        blocks = int(layout.block_tables.max()) + 1
        shared = v.shape[2] < k.shape[2]
        heads, features = k.shape[1:]
        cache = allocate_cache(blocks, _BLOCK, heads, features, k.dtype, k.device, shared=shared)
        return paged_attention(q, k, v, cache, layout, **options)

    def trained(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return training.sequence_attention(q, k, v, lengths=lengths, **options)

    out: Tensor = _straight_through(value, trained, q, k, v)
    return out


def _layout(lengths: Sequence[int]) -> PagedLayout:
    """Whole sequences, each in blocks of its own."""
    counts = [-(-length // _BLOCK) for length in lengths]
    firsts = list(accumulate(counts, initial=0))
    tables = torch.zeros(len(lengths), max(counts), dtype=torch.int32)
    for row, (first, count) in enumerate(zip(firsts, counts, strict=False)):
        tables[row, :count] = torch.arange(first, first + count)
    starts = tuple(accumulate(lengths, initial=0))
    places = zip(firsts, lengths, strict=False)
    return PagedLayout(
        slots=torch.cat([torch.arange(_BLOCK * first, _BLOCK * first + n) for first, n in places]),
        block_tables=tables,
        starts=torch.tensor(starts, dtype=torch.int32),
        lengths=torch.tensor(list(lengths), dtype=torch.int32),
        query_starts=starts,
        context_lengths=tuple(lengths),
        decodes=0,
        block_size=_BLOCK,
    )


def token_scores(logits: Tensor, targets: Tensor, *, gradients: bool) -> tuple[Tensor, Tensor]:
    """`reference.token_scores`, by the same softmax as the sampler's."""
    scores = logits.log_softmax(dim=1)
    wanted = targets[:, None]
    logprobs = scores.gather(1, wanted).flatten()
    first = logprobs >= scores.amax(1)
    if gradients:
        spread = scores.exp_().neg_()
        logits.copy_(spread.scatter_add_(1, wanted, torch.ones_like(logprobs)[:, None]))
    return logprobs, first
