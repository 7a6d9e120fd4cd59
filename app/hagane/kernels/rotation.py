"""Rotated heads, through torch's own operators; `reference` has them, too."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def apply_rotation(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    center: Tensor | None = None,
    *,
    interleaved: bool = False,
) -> Tensor:
    """x [tokens, heads, head_dim], turned as in `apply_rope`, less `center`."""
    wide, half = x.float(), cos.shape[1]
    turned, rest = wide[..., : 2 * half], wide[..., 2 * half :]
    if interleaved:
        first, second = turned.unflatten(-1, (half, 2)).unbind(-1)
    else:
        first, second = turned.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    pair = first * cos - second * sin, second * cos + first * sin
    turned = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, dim=-1)
    rotated = torch.cat((turned, rest), dim=-1)
    return (rotated if center is None else rotated - center).to(x.dtype)


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
    """Queries, keys and values of multi-head latent attention, each [tokens, heads, width].

    q is [tokens, heads * width], of which the last features of each head are turned by cos and sin,
    float32 [tokens, turned / 2], as in `apply_rope`. `shared` [tokens, turned] is turned and ends
    every head's key. kv [tokens, heads * (width - turned + values)] has the beginning of each
    head's key, and its value, which zeros make as wide. q may be overwritten.
    """
    turned = shared.shape[1]
    q, kv = q.unflatten(1, (heads, -1)), kv.unflatten(1, (heads, -1))
    plain = q.shape[2] - turned
    end = apply_rotation(q[..., plain:], cos, sin, interleaved=interleaved)
    tail = apply_rotation(shared[:, None], cos, sin, interleaved=interleaved)
    key = torch.cat((kv[..., :plain], tail.expand(-1, heads, -1)), dim=-1)
    value = F.pad(kv[..., plain:], (0, q.shape[2] - (kv.shape[2] - plain)))
    return torch.cat((q[..., :plain], end), dim=-1), key, value


def narrow_heads(x: Tensor, heads: int, features: int) -> Tensor:
    """The first features of each head: x [tokens, heads * width] -> [tokens, heads * features]."""
    narrow: Tensor = x.unflatten(1, (heads, -1))[..., :features]
    return narrow.flatten(1)
