"""Every operation through torch's own operators, on any device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from hagane.kernels.experts import gate_rows, route
from hagane.kernels.layout import PagedLayout, Scoring
from hagane.kernels.rotation import apply_rotation, latent_heads, narrow_heads
from hagane.kernels.sampling import heaviest, restrict, sample, samples

__all__ = [
    "activate",
    "allocate_cache",
    "apply_rope",
    "apply_rotation",
    "argmax",
    "causal_attention",
    "gate_rows",
    "hadamard",
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


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, offset: float = 0.0, residual: Tensor | None = None
) -> Tensor:
    """x [..., features] / rms(x) * (weight [features] + offset), computed in float32.

    Added to `residual`, if given. Zhang and Sennrich, 2019, https://arxiv.org/abs/1910.07467.
    """
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if offset:
        out = (wide * scale * (weight.float() + offset)).to(x.dtype)
    else:
        out = weight * (wide * scale).to(x.dtype)
    return out if residual is None else residual + out


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """(x [..., features] - mean) / deviation * weight + bias [features], computed in float32.

    Ba et al., 2016, https://arxiv.org/abs/1607.06450.
    """
    wide = None if bias is None else bias.float()
    return F.layer_norm(x.float(), (x.shape[-1],), weight.float(), wide, eps).to(x.dtype)


def scaled_add(x: Tensor, factor: float, residual: Tensor | None = None) -> Tensor:
    """x [tokens, features] times `factor`, added to `residual` if given."""
    return x * factor if residual is None else torch.add(residual, x, alpha=factor)


def softcap(logits: Tensor, scale: float, cap: float) -> Tensor:
    """Float32 logits [rows, vocab] times `scale`; bounded to cap * tanh(x / cap) unless cap is 0.

    They may be overwritten.
    """
    scaled = logits * scale
    return torch.tanh(scaled / cap) * cap if cap else scaled


def hadamard(x: Tensor, block: int) -> Tensor:
    """x [..., features], rotated in blocks of a power of two of features, in float32, as x's dtype.

    Outliers are spread over their block; the rotation is its own inverse (QuaRot, Ashkboos et al.,
    2024, arXiv:2404.00456). Sums have the fast transform's order, so that every device and kernel
    computes the same bits.
    """
    turned = x.float() * (1 / math.sqrt(block))
    stride = 1
    while stride < block:
        first, second = turned.unflatten(-1, (-1, 2, stride)).unbind(-2)
        turned = torch.stack((first + second, first - second), dim=-2).flatten(-3)
        stride *= 2
    return turned.to(x.dtype)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """[tokens, 2 * features] -> [tokens, features]: silu of the first half times the second.

    Shazeer, 2020, https://arxiv.org/abs/2002.05202.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def activate(x: Tensor, kind: str, *, gated: bool) -> Tensor:
    """The activation of x [tokens, features]; if `gated`, of its first half times the second.

    `kind` is "silu", "gelu" (Hendrycks and Gimpel, 2016, https://arxiv.org/abs/1606.08415),
    "gelu_tanh", its approximation, or "clamped": gpt-oss's silu, steeper, with a bound of 7 on both
    halves, and 1 added to the second.
    """
    gate, up = x.chunk(2, dim=-1) if gated else (x, None)
    if kind == "clamped":
        gate, up = gate.clamp(max=7.0), None if up is None else up.clamp(-7.0, 7.0) + 1
        out = gate * torch.sigmoid(gate * 1.702)
        return out if up is None else out * up
    if kind == "silu":
        out = F.silu(gate)
    else:
        out = F.gelu(gate, approximate="tanh" if kind == "gelu_tanh" else "none")
    return out if up is None else out * up


def rope_tables(positions: Tensor, frequencies: Tensor, magnitude: float) -> tuple[Tensor, Tensor]:
    """cos and sin, times `magnitude`, of int64 positions [tokens] times float32 frequencies [n].

    Each float32 [tokens, n].
    """
    product = positions.float()[:, None] * frequencies
    return product.cos() * magnitude, product.sin() * magnitude


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
    """Queries, keys and values out of qkv [tokens, (heads + 2 * kv_heads) * head_dim].

    Queries and keys are normalised if `norms` (of q and of k) are given, per head by [head_dim], or
    all heads together by [heads * head_dim] and [kv_heads * head_dim], as `rms_norm` with `offset`.
    Their first features are turned by cos, sin float32 [tokens, features / 2], or None: feature i
    is paired with i + features / 2, as in Hugging Face checkpoints (Su et al., 2021,
    arXiv:2104.09864), or neighbours if `interleaved`. `center` float32 [kv_heads, head_dim] is
    taken off the keys. Returns [tokens, heads, head_dim] and twice [tokens, kv_heads, head_dim];
    qkv may be overwritten.
    """
    rows = qkv.unflatten(1, (heads + 2 * kv_heads, -1))
    q, k, v = rows.split((heads, kv_heads, kv_heads), dim=1)
    if norms is not None:
        q, k = (_normed(part, norm, eps, offset) for part, norm in zip((q, k), norms, strict=True))
    if cos is not None and sin is not None:
        q = apply_rotation(q, cos, sin, interleaved=interleaved)
        k = apply_rotation(k, cos, sin, center, interleaved=interleaved)
    return q, k, v


def _normed(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    """x [tokens, heads, head_dim], normalised per head or over all of them."""
    if weight.shape[0] == x.shape[2]:
        return rms_norm(x, weight, eps, offset)
    return rms_norm(x.flatten(1), weight, eps, offset).view(x.shape)


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
    """Attention of each token to the earlier ones of its own row.

    q [rows * length, heads, head_dim]; k, v [rows * length, kv_heads, head_dim]; `window`, `scale`
    (None: 1 / sqrt(head_dim)), `cap` and `sinks` as in `Scoring`. Returns
    [rows * length, heads * head_dim]. Differentiable.
    """
    heads, head_dim = q.shape[1:]
    q, k, v = (x.view(rows, -1, x.shape[1], head_dim).transpose(1, 2) for x in (q, k, v))
    length = q.shape[2]
    every = window is None or window >= length
    plain = every and not cap and sinks is None
    mask = None if plain else _mask(length, length, window, q.device)
    out = _attention(q, k, v, mask, Scoring(scale or head_dim**-0.5, window, cap, sinks))
    return out.transpose(1, 2).reshape(-1, heads * head_dim)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scoring: Scoring) -> Tensor:
    """torch's, of [batch, heads, tokens, head_dim], or what it lacks: capped scores, sinks.

    Without a mask it is causal; the mask has the window.
    """
    scale, cap, sinks = scoring.scale, scoring.cap, scoring.sinks
    if mask is None or not (cap or sinks is not None):
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True, scale=scale
        )
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    scores = (q @ k.transpose(2, 3)).float() * scale
    if cap:
        scores = torch.tanh(scores / cap) * cap
    scores = scores.masked_fill(~mask, -torch.inf)
    if sinks is not None:
        ends = sinks[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat((scores, ends), dim=-1)
    weights = scores.softmax(-1)[..., : k.shape[2]].to(v.dtype)
    return torch.matmul(weights, v)


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
    """`causal_attention` of sequences of these lengths, one after the other: none sees another."""
    options = {"window": window, "scale": scale, "cap": cap, "sinks": sinks}
    return each_sequence(causal_attention, q, k, v, lengths, **options)


def each_sequence(
    attention: Callable[..., Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Sequence[int],
    **options: Any,
) -> Tensor:
    """`sequence_attention` by one call of `attention` for each."""
    parts = zip(*(x.split(list(lengths)) for x in (q, k, v)), strict=True)
    return torch.cat([attention(*part, rows=1, **options) for part in parts])


def allocate_cache(
    blocks: int,
    block_size: int,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    shared: bool = False,
) -> tuple[Tensor, Tensor]:
    """Keys and values of one layer, each [blocks, block_size, kv_heads, head_dim].

    `shared`: a value is the beginning of its key, and values have no features of their own.
    Zeros, not garbage: a masked NaN in a padded block would still poison the products.
    """
    shape = (blocks, block_size, kv_heads)
    return (
        torch.zeros(*shape, head_dim, dtype=dtype, device=device),
        torch.zeros(*shape, 0 if shared else head_dim, dtype=dtype, device=device),
    )


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
    """Put new keys and values into the cache, then let every new token look at its sequence.

    q [tokens, heads, head_dim]; k, v [tokens, kv_heads, head_dim]; `window`, `scale`, `cap` and
    `sinks` as in `causal_attention`. Returns [tokens, heads * head_dim]. Where the cache's values
    are shared, v are the first features of k, and so many are those of each head's result.
    """
    scoring = Scoring(scale or q.shape[2] ** -0.5, window, cap, sinks)
    keys, values = cache
    keys.view(-1, *k.shape[1:]).index_copy_(0, layout.slots, k.to(keys.dtype))
    if values.shape[3]:
        values.view(-1, *v.shape[1:]).index_copy_(0, layout.slots, v.to(values.dtype))
    else:
        values = keys[..., : v.shape[2]]
    out = q.new_empty(*q.shape[:2], v.shape[2])
    if layout.decodes:
        out[: layout.decodes] = _decode(q, keys, values, layout, scoring)
    for sequence in range(layout.decodes, len(layout.context_lengths)):
        start, end = layout.query_starts[sequence : sequence + 2]
        context = layout.context_lengths[sequence]
        blocks = layout.block_tables[sequence, : -(-context // layout.block_size)]
        past_keys, past_values = (
            part[blocks].flatten(0, 1)[:context].transpose(0, 1)[None].to(q.dtype)
            for part in (keys, values)
        )
        mask = _mask(end - start, context, window, q.device)
        queries = q[start:end].transpose(0, 1)[None]
        result = _attention(queries, past_keys, past_values, mask, scoring)
        out[start:end] = result[0].transpose(0, 1)
    return out.flatten(1)


def _decode(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    layout: PagedLayout,
    scoring: Scoring,
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
    lengths = layout.lengths[:n, None]
    mask = positions < lengths
    if scoring.window is not None:
        mask &= positions >= lengths - scoring.window
    out = _attention(q[:n, :, None], k, v, mask[:, None, None], scoring)
    return out[:, :, 0]


def _mask(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """Boolean [queries, keys], true where a query (the last ones of the keys) may look."""
    query = torch.arange(keys - queries, keys, device=device)[:, None]
    key = torch.arange(keys, device=device)
    mask = key <= query
    if window is not None:
        mask &= key > query - window
    return mask


def argmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Of float32 [rows, vocab] each row's most likely token, int64 [rows], of equals the first.

    And bool [rows]: whether the largest logit is a finite number.
    """
    return logits.argmax(dim=1), torch.isfinite(logits.amax(dim=1))


def token_scores(logits: Tensor, targets: Tensor, *, gradients: bool) -> tuple[Tensor, Tensor]:
    """Log-probabilities of int64 targets [rows] under logits [rows, vocab]: float32 [rows].

    And bool [rows]: whether no token is likelier. With `gradients`, logits are overwritten with the
    derivatives of the log-probabilities by them: 1 at the target, less every token's probability.
    """
    wide, wanted = logits.float(), targets[:, None]
    chosen, total = wide.gather(1, wanted), wide.logsumexp(1, keepdim=True)
    first = (chosen >= wide.amax(1, keepdim=True))[:, 0]
    if gradients:
        spread = wide.sub(total).exp_().neg_()
        logits.copy_(spread.scatter_add_(1, wanted, torch.ones_like(chosen)))
    return (chosen - total)[:, 0], first
