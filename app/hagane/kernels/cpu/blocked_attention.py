"""Causal attention for training on the CPU: products by torch, the softmax between them natively.

torch's own kernel takes several times as long in the backward pass. Each block of queries sees the
keys up to its last query, so that little masked work is done. The backward pass computes the
probabilities again (Dao et al., 2022, arXiv:2205.14135). The queries of all heads that share a key
stand side by side.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hagane.kernels import reference
from hagane.kernels.cpu import training_extension

# Queries that attend together: fewer would make for small products, more for more that is masked.
_QUERIES = 128


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    rows: int,
    window: int | None,
    scale: float | None = None,
    cap: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """`reference.causal_attention`, of float32 or bfloat16; natively without cap and sinks."""
    if cap or sinks is not None:
        return reference.causal_attention(
            q, k, v, rows=rows, window=window, scale=scale, cap=cap, sinks=sinks
        )
    q = prescaled(q, scale)
    out: Tensor = _Attention.apply(q, k, v, rows, window)  # type: ignore[no-untyped-call]
    return out


def prescaled(q: Tensor, scale: float | None) -> Tensor:
    """q [tokens, heads, head_dim], so that 1 / sqrt(head_dim) makes `scale` of it."""
    factor = 1.0 if scale is None else scale * math.sqrt(q.shape[2])
    return q if math.isclose(factor, 1.0, rel_tol=1e-6) else q * factor


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, rows: int, window: int | None) -> Tensor:
        kv_heads = k.shape[1]
        queries, keys, values = (_heads_first(x, rows, kv_heads) for x in (q, k, v))
        keys, values = keys[:, 0], values[:, 0]
        ctx.save_for_backward(queries, keys, values)
        ctx.rows, ctx.window = rows, window
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        for start, end, first in _blocks(queries.shape[2], window):
            own = queries[:, :, start:end].flatten(1, 2)
            scores = torch.bmm(own, keys[:, first:end].transpose(1, 2))
            _softmax(scores, None, end - start, start - first, window, q.shape[2])
            _scatter(out, torch.bmm(scores, values[:, first:end]), rows, start, end)
        return out.flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        queries, keys, values = ctx.saved_tensors
        rows, head_dim = ctx.rows, keys.shape[2]
        grad = grad.view(len(grad), -1, head_dim)
        grad_out = _heads_first(grad, rows, len(keys) // rows)
        grad_q = torch.empty_like(grad)
        grad_k, grad_v = torch.zeros_like(keys), torch.zeros_like(values)
        for start, end, first in _blocks(keys.shape[1], ctx.window):
            seen = slice(first, end)
            own, out = (x[:, :, start:end].flatten(1, 2) for x in (queries, grad_out))
            scores = torch.bmm(own, keys[:, seen].transpose(1, 2))
            gradients = torch.bmm(out, values[:, seen].transpose(1, 2))
            _softmax(scores, gradients, end - start, start - first, ctx.window, head_dim)
            grad_v[:, seen] += torch.bmm(scores.transpose(1, 2), out)
            grad_k[:, seen] += torch.bmm(gradients.transpose(1, 2), own)
            _scatter(grad_q, torch.bmm(gradients, keys[:, seen]), rows, start, end)
        return grad_q, _tokens_first(grad_k, rows), _tokens_first(grad_v, rows), None, None


def _blocks(length: int, window: int | None) -> list[tuple[int, int, int]]:
    """Queries [start, end), and the first key that one of them sees."""
    return [
        (start, min(start + _QUERIES, length), 0 if window is None else max(0, start - window + 1))
        for start in range(0, length, _QUERIES)
    ]


def _heads_first(x: Tensor, rows: int, kv_heads: int) -> Tensor:
    """[rows * length, heads, head_dim] -> contiguous, by the keys that the heads share,
    [rows * kv_heads, heads / kv_heads, length, head_dim].
    """
    split = x.unflatten(1, (kv_heads, -1)).unflatten(0, (rows, -1))
    moved: Tensor = split.permute(0, 2, 3, 1, 4).flatten(0, 1)
    return moved.contiguous()


def _tokens_first(x: Tensor, rows: int) -> Tensor:
    """[rows * kv_heads, length, head_dim] -> [rows * length, kv_heads, head_dim]."""
    moved: Tensor = x.unflatten(0, (rows, -1)).transpose(1, 2).flatten(0, 1)
    return moved


def _scatter(target: Tensor, block: Tensor, rows: int, start: int, end: int) -> None:
    """Queries [start, end) of every row, all heads that share a key side by side
    [rows * kv_heads, heads / kv_heads * (end - start), head_dim], into target
    [rows * length, heads, head_dim].
    """
    kv_heads = len(block) // rows
    split = block.view(rows, kv_heads, -1, end - start, block.shape[2]).permute(0, 3, 1, 2, 4)
    target.unflatten(0, (rows, -1))[:, start:end].unflatten(2, (kv_heads, -1)).copy_(split)


def _softmax(
    scores: Tensor,
    gradients: Tensor | None,
    queries: int,
    offset: int,
    window: int | None,
    head_dim: int,
) -> None:
    """Products of queries and keys [batch, rows, keys] become probabilities.

    `gradients`, by the probabilities, become those by the products. The first of every `queries`
    rows is the key at `offset`.
    """
    training_extension.causal_softmax(
        scores.flatten(0, 1),
        gradients if gradients is None else gradients.flatten(0, 1),
        queries=queries,
        offset=offset,
        window=window or 0,
        scale=head_dim**-0.5,
    )
