"""Every operation through torch's own operators, on any device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


@dataclass(frozen=True)
class PagedLayout:
    """Where the tokens of one ragged batch live in the KV cache.

    Sequences are ordered so that the first `decodes` of them bring one token each. `slots` int64
    [tokens] is block * block_size + offset of every new token; `block_tables` int64
    [sequences, most blocks] is padded with 0. The tuples are on the host: `query_starts`
    (sequences + 1 row offsets) and `context_lengths` (tokens in the cache after this step).
    """

    slots: Tensor
    block_tables: Tensor
    context_lengths_tensor: Tensor
    query_starts: tuple[int, ...]
    context_lengths: tuple[int, ...]
    decodes: int


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., features] / rms(x) * weight [features], computed in float32.

    Zhang and Sennrich, 2019, https://arxiv.org/abs/1910.07467.
    """
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * (wide * scale).to(x.dtype)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """[tokens, 2 * features] -> [tokens, features]: silu of the first half times the second.

    Shazeer, 2020, https://arxiv.org/abs/2002.05202.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [tokens, heads, head_dim] by cos, sin [tokens, head_dim / 2].

    Feature i is paired with i + head_dim / 2, as in Hugging Face checkpoints.
    """
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, *, rows: int, window: int | None) -> Tensor:
    """Attention of each token to the earlier ones of its own row.

    q [rows * length, heads, head_dim]; k, v [rows * length, kv_heads, head_dim]. Returns q's
    shape. Differentiable.
    """
    heads, head_dim = q.shape[1:]
    q, k, v = (x.view(rows, -1, x.shape[1], head_dim).transpose(1, 2) for x in (q, k, v))
    length = q.shape[2]
    mask = None if window is None or window >= length else _mask(length, length, window, q.device)
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True
    )
    return out.transpose(1, 2).reshape(-1, heads, head_dim)


def store_kv(k: Tensor, v: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor) -> None:
    """Write k, v [tokens, kv_heads, head_dim] at `slots` [tokens].

    The caches are [blocks, block_size, kv_heads, head_dim].
    """
    key_cache.view(-1, *k.shape[1:]).index_copy_(0, slots, k.to(key_cache.dtype))
    value_cache.view(-1, *v.shape[1:]).index_copy_(0, slots, v.to(value_cache.dtype))


def paged_attention(
    q: Tensor, key_cache: Tensor, value_cache: Tensor, layout: PagedLayout, *, window: int | None
) -> Tensor:
    """Attention of every new token to its own sequence's cached tokens, itself included.

    q [tokens, heads, head_dim]; caches [blocks, block_size, kv_heads, head_dim]; `window` is the
    number of most recent tokens seen, None for all. Returns [tokens, heads, head_dim].
    """
    out = torch.empty_like(q)
    if layout.decodes:
        out[: layout.decodes] = _decode(q, key_cache, value_cache, layout, window)
    for sequence in range(layout.decodes, len(layout.context_lengths)):
        start, end = layout.query_starts[sequence : sequence + 2]
        context = layout.context_lengths[sequence]
        blocks = layout.block_tables[sequence, : -(-context // key_cache.shape[1])]
        k, v = (
            cache[blocks].flatten(0, 1)[:context].transpose(0, 1)[None].to(q.dtype)
            for cache in (key_cache, value_cache)
        )
        mask = _mask(end - start, context, window, q.device)
        queries = q[start:end].transpose(0, 1)[None]
        result = F.scaled_dot_product_attention(queries, k, v, attn_mask=mask, enable_gqa=True)
        out[start:end] = result[0].transpose(0, 1)
    return out


def _decode(
    q: Tensor, key_cache: Tensor, value_cache: Tensor, layout: PagedLayout, window: int | None
) -> Tensor:
    """One query row per sequence, all at once; shorter contexts are masked."""
    n = layout.decodes
    longest = max(layout.context_lengths[:n])
    blocks = layout.block_tables[:n, : -(-longest // key_cache.shape[1])]
    k, v = (
        cache[blocks].flatten(1, 2).transpose(1, 2).to(q.dtype)
        for cache in (key_cache, value_cache)
    )
    positions = torch.arange(k.shape[2], device=q.device)
    lengths = layout.context_lengths_tensor[:n, None]
    mask = positions < lengths
    if window is not None:
        mask &= positions >= lengths - window
    out = F.scaled_dot_product_attention(
        q[:n, :, None], k, v, attn_mask=mask[:, None, None], enable_gqa=True
    )
    return out[:, :, 0]


def _mask(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """Boolean [queries, keys], true where a query (the last ones of the keys) may look."""
    query = torch.arange(keys - queries, keys, device=device)[:, None]
    key = torch.arange(keys, device=device)
    mask = key <= query
    if window is not None:
        mask &= key > query - window
    return mask
