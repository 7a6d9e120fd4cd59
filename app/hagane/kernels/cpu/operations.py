"""Every operation of serving through the C++ kernels, in float32 and bfloat16.

Results are batch-invariant: a row's result has the same bits alone, in any batch, as prefill or
as decode, because every sum runs in an order that depends on the row alone.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hagane.kernels.cpu import extension, latent_extension, sampling_extension
from hagane.kernels.cpu.packing import LANES, PackedWeight
from hagane.kernels.cpu.recording import empty
from hagane.kernels.layout import PagedLayout
from hagane.kernels.sampling import SamplingTensors


def linear(
    x: Tensor,
    weight: PackedWeight,
    dtype: torch.dtype | None = None,
    residual: Tensor | None = None,
    changes: tuple[extension.Bank, Tensor] | None = None,
) -> Tensor:
    """x [tokens, in] -> [tokens, out] in `dtype`, or else in x's, plus `residual` like the result.

    `changes` are a bank, its changes in x's dtype, and int32 [tokens], the slot whose change each
    row gets, -1 for none. Raises ValueError for a residual that is not contiguous or not like the
    result.
    """
    out = empty(x.shape[0], weight.out_features, dtype=dtype or x.dtype)
    bank, slots = (None, None) if changes is None else changes
    extension.linear(weight.handle, x, out, residual, bank, slots)
    return out


def embed(ids: Tensor, weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """int64 ids [tokens] -> rows [tokens, hidden] of a packed float or int8 matrix."""
    out = empty(ids.shape[0], weight.in_features, dtype=dtype)
    extension.embed(weight.handle, ids, out)
    return out


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, offset: float = 0.0, residual: Tensor | None = None
) -> Tensor:
    out = empty(*x.shape, dtype=x.dtype)
    extension.row_norm(x, out, weight, None, residual, eps, offset, centered=False)
    return out


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    out = empty(*x.shape, dtype=x.dtype)
    extension.row_norm(x, out, weight, bias, None, eps, 0.0, centered=True)
    return out


def activate(x: Tensor, kind: str, *, gated: bool) -> Tensor:
    out = empty(x.shape[0], x.shape[1] // (2 if gated else 1), dtype=x.dtype)
    extension.activate(x, out, kind, gated=gated)
    return out


def scaled_add(x: Tensor, factor: float, residual: Tensor | None = None) -> Tensor:
    out = empty(*x.shape, dtype=x.dtype)
    extension.scaled_add(x, out, residual, factor)
    return out


def softcap(logits: Tensor, scale: float, cap: float) -> Tensor:
    """In place."""
    extension.softcap(logits, scale, cap)
    return logits


def silu_and_mul(gate_up: Tensor) -> Tensor:
    out = empty(gate_up.shape[0], gate_up.shape[1] // 2, dtype=gate_up.dtype)
    extension.silu_and_mul(gate_up, out)
    return out


def gather(x: Tensor, rows: Tensor) -> Tensor:
    """Rows [int64 count] of x [tokens, ...], of which each is in one piece."""
    out = empty(rows.shape[0], *x.shape[1:], dtype=x.dtype)
    extension.gather(x, rows, out)
    return out


def rope_tables(positions: Tensor, frequencies: Tensor, magnitude: float) -> tuple[Tensor, Tensor]:
    tokens, count = positions.shape[0], frequencies.shape[0]
    cos, sin = (empty(tokens, count, dtype=torch.float32) for _ in range(2))
    extension.rope_tables(positions, frequencies, magnitude, cos, sin)
    return cos, sin


def apply_rope(
    qkv: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    *,
    heads: int,
    kv_heads: int,
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
    center: Tensor | None = None,
    offset: float = 0.0,
    interleaved: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """In place: the results are views of `qkv`."""
    counts = (heads, kv_heads, kv_heads)
    extension.apply_rope(
        qkv, heads, kv_heads, cos, sin, norms, center, eps, offset, interleaved=interleaved
    )
    # The builtin itself: Tensor.split takes several times as long, in every layer of every step.
    q, k, v = torch.split_with_sizes(qkv.view(qkv.shape[0], sum(counts), -1), counts, 1)
    return q, k, v


def latent_heads(
    q: Tensor,
    kv: Tensor,
    shared: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    heads: int,
    interleaved: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """In place: the queries are a view of `q`."""
    k, v = (empty(*q.shape, dtype=q.dtype) for _ in range(2))
    latent_extension.latent_heads(
        q, kv, shared, k, v, cos, sin, heads=heads, interleaved=interleaved
    )
    shape = (q.shape[0], heads, q.shape[1] // heads)
    return q.unflatten(1, shape[1:]), k.view(shape), v.view(shape)


def head_products(
    x: Tensor,
    weights: Sequence[PackedWeight],
    room: int,
    changes: tuple[Sequence[extension.Bank], Tensor] | None = None,
) -> Tensor:
    """x [tokens, heads * width] -> [tokens, heads * room]: each head times a matrix of its own.

    Matrices read the first features of a head, and write the first of its result: what is left is
    not written. `changes` are a bank for each, and the rows' slots, as in `linear`.
    """
    tokens, heads = x.shape[0], len(weights)
    out = empty(tokens, heads * room, dtype=x.dtype)
    if changes is None:
        latent_extension.head_products([weight.handle for weight in weights], x, out)
        return out
    width, (banks, slots) = x.shape[1] // heads, changes
    for head, (weight, bank) in enumerate(zip(weights, banks, strict=True)):
        source = x[:, head * width : head * width + weight.in_features]
        target = out[:, head * room : head * room + weight.out_features]
        extension.linear(weight.handle, source, target, None, bank, slots)
    return out


def latent_keys(
    q: Tensor,
    wide: Tensor,
    latent: Tensor,
    shared: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    heads: int,
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
    """Queries and keys of latent attention over a cache of latents (`models/latent.py`).

    q [tokens, heads * width], of which the last features of each head are turned as in
    `latent_heads`, and end the heads of `wide` [tokens, heads * (rank + turned)], in place. A key
    is the latent vector [tokens, rank] and `shared` [tokens, turned], turned. Returns
    [tokens, heads, rank + turned] and [tokens, 1, rank + turned].
    """
    k = empty(q.shape[0], latent.shape[1] + shared.shape[1], dtype=q.dtype)
    latent_extension.latent_keys(
        q, latent, shared, wide, k, cos, sin, heads=heads, interleaved=interleaved
    )
    return wide.unflatten(1, (heads, -1)), k.unflatten(1, (1, -1))


def narrow_heads(x: Tensor, heads: int, features: int) -> Tensor:
    out = empty(x.shape[0], heads * features, dtype=x.dtype)
    latent_extension.narrow_heads(x, out, heads)
    return out


def allocate_cache(
    blocks: int,
    block_size: int,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: Any,
    *,
    shared: bool = False,
) -> tuple[Tensor, Tensor]:
    """Keys and values of one layer (drawn in cpu/ops.h); the first dimension counts blocks.

    `dtype` int8 halves what bfloat16 takes: codes, and a float32 scale for every token and head.
    Pages that the system hands out, zeroed, when a block is first written: a cache costs no time at
    the start, and no memory before it is used.
    """

    def pages(width: int) -> Tensor:
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # shared memory gets no large pages
        memory = mmap.mmap(-1, blocks * width * dtype.itemsize, private)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        return torch.frombuffer(memory, dtype=dtype).view(blocks, width)

    padded = -(-head_dim // LANES) * LANES
    scale = 4 if dtype == torch.int8 else 0
    tokens = kv_heads * block_size
    keys = pages(tokens * (head_dim + scale))
    if shared:
        return keys, torch.empty(blocks, 0, dtype=dtype)
    return keys, pages(tokens * (padded + scale))


def paged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: tuple[Tensor, Tensor],
    layout: PagedLayout,
    *,
    window: int | None,
    scale: float | None = None,
    cap: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """Queries may be fewer than keys: `layout.slots` count these, `layout.starts` those."""
    tokens, heads, head_dim = q.shape
    extension.store(k, v, cache, layout.slots, layout.block_size)
    out = empty(tokens, heads * v.shape[2], dtype=q.dtype)
    extension.paged_attention(
        q,
        out,
        cache,
        kv_heads=k.shape[1],
        block_size=layout.block_size,
        block_tables=layout.block_tables,
        context_lengths=layout.lengths,
        query_starts=layout.starts,
        window=window or 0,
        scale=scale or head_dim**-0.5,
        cap=cap,
        sinks=sinks,
    )
    return out


def prefetch(
    cache: tuple[Tensor, Tensor], layout: PagedLayout, kv_heads: int, head_dim: int
) -> None:
    """Have the linear layers until the next attention bring what that will read into the caches.

    The next attention is the one over `cache` with this layout.
    """
    extension.prefetch(
        cache,
        kv_heads=kv_heads,
        head_dim=head_dim,
        block_size=layout.block_size,
        block_tables=layout.block_tables,
        context_lengths=layout.lengths,
    )


def argmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    tokens = torch.empty(len(logits), dtype=torch.int64)
    finite = torch.empty(len(logits), dtype=torch.bool)
    sampling_extension.argmax(logits, tokens, finite)
    return tokens, finite


def heaviest(
    logits: Tensor, rows: Tensor, temperature: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    tokens = torch.empty(len(rows), count, dtype=torch.int64)
    weights = torch.empty(len(rows), count, dtype=torch.float32)
    totals = torch.empty(len(rows), dtype=torch.float64)
    sampling_extension.heaviest(logits, rows, temperature, (tokens, weights, totals))
    return tokens, weights, totals


def restrict(logits: Tensor, rows: Tensor, allowed: Tensor) -> Tensor:
    out = torch.empty(len(rows), logits.shape[1], dtype=torch.float32)
    sampling_extension.restrict(logits, out, rows, allowed)
    return out


def sample(logits: Tensor, sampling: SamplingTensors) -> Tensor:
    return samples(logits, sampling, 1).flatten()


def samples(logits: Tensor, sampling: SamplingTensors, draws: int) -> Tensor:
    tokens = torch.empty(len(logits), draws, dtype=torch.int64)
    sampling_extension.sample(
        logits,
        sampling.temperature,
        sampling.top_p,
        sampling.min_p,
        sampling.uniform,
        sampling.top_k,
        tokens,
    )
    return tokens
