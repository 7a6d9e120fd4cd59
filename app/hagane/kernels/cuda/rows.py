"""Operations on rows: norms, SwiGLU, rotary positions. One read and one write of memory each.

Values are rounded where the reference rounds them, so that both agree in 16 bits as well.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, empty_like

from hagane.kernels import reference
from hagane.kernels.cuda.tiles import power_of_two

_COLUMNS = 1024
_HEADS = 8


@triton.jit
def _rms_norm(x, weight, out, features, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * features
    at = tl.arange(0, BLOCK)
    inside = at < features
    values = tl.load(x + row + at, mask=inside, other=0.0)
    wide = values.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / features + eps)
    normed = (wide * scale).to(values.dtype).to(tl.float32)
    scaled = normed * tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row + at, scaled.to(values.dtype), mask=inside)


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, offset: float = 0.0, residual: Tensor | None = None
) -> Tensor:
    if offset or residual is not None:
        return reference.rms_norm(x, weight, eps, offset, residual)
    x = x.contiguous()
    out = empty_like(x)
    features = x.shape[-1]
    block = power_of_two(features)
    warps = 4 if block <= 2048 else 8
    _rms_norm[(x.numel() // features,)](x, weight, out, features, eps, BLOCK=block, num_warps=warps)
    return out


@triton.jit
def _silu_and_mul(gate_up, out, features, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < features
    gate = tl.load(gate_up + 2 * row * features + at, mask=inside, other=0.0)
    up = tl.load(gate_up + (2 * row + 1) * features + at, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    silu = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype).to(tl.float32)
    tl.store(out + row * features + at, (silu * up.to(tl.float32)).to(gate.dtype), mask=inside)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    tokens, features = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(tokens, features)
    grid = (tokens, triton.cdiv(features, _COLUMNS))
    _silu_and_mul[grid](gate_up.contiguous(), out, features, BLOCK=_COLUMNS, num_warps=4)
    return out


@triton.jit
def _apply_rope(
    qkv, cos, sin, q_norm, k_norm, row_stride, heads, rotated, eps,
    HALF: tl.constexpr, PADDED: tl.constexpr, HEADS: tl.constexpr, NORMED: tl.constexpr,
):  # fmt: skip
    """One token's heads [HEADS, 2 * HALF]; feature i turns with feature i + HALF."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    pair = tl.arange(0, PADDED)[None, :]
    inside = (head < rotated) & (pair < HALF)
    at = qkv + token * row_stride + head * (2 * HALF) + pair
    first = tl.load(at, mask=inside, other=0.0)
    second = tl.load(at + HALF, mask=inside, other=0.0)
    dtype = first.dtype
    left, right = first.to(tl.float32), second.to(tl.float32)
    if NORMED:
        mean = (tl.sum(left * left, axis=1) + tl.sum(right * right, axis=1)) / (2 * HALF)
        scale = tl.rsqrt(mean + eps)[:, None]
        weight = tl.where(head < heads, q_norm, k_norm) + pair
        real = pair < HALF
        left = (left * scale).to(dtype).to(tl.float32) * tl.load(weight, mask=real).to(tl.float32)
        right = (right * scale).to(dtype).to(tl.float32)
        right *= tl.load(weight + HALF, mask=real).to(tl.float32)
        left, right = left.to(dtype).to(tl.float32), right.to(dtype).to(tl.float32)
    angle = token * HALF + pair
    c = tl.load(cos + angle, mask=pair < HALF, other=0.0)
    s = tl.load(sin + angle, mask=pair < HALF, other=0.0)
    tl.store(at, (left * c - right * s).to(dtype), mask=inside)
    tl.store(at + HALF, (right * c + left * s).to(dtype), mask=inside)


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
    """In place: the results are views of `qkv`. Other rotations than Llama's are torch's."""
    head_dim = qkv.shape[1] // (heads + 2 * kv_heads)
    per_head = norms is None or len(norms[0]) == head_dim
    whole = cos is not None and 2 * cos.shape[1] == head_dim
    if cos is None or sin is None or not (whole and per_head) or interleaved or offset:
        return reference.apply_rope(
            qkv, cos, sin, heads=heads, kv_heads=kv_heads, norms=norms, eps=eps, center=center,
            offset=offset, interleaved=interleaved,
        )  # fmt: skip
    tokens, half = cos.shape
    rotated = heads + kv_heads
    q_norm, k_norm = norms or (qkv, qkv)
    _apply_rope[(tokens, triton.cdiv(rotated, _HEADS))](
        qkv, cos, sin, q_norm, k_norm, qkv.stride(0), heads, rotated, eps,
        HALF=half, PADDED=power_of_two(half), HEADS=_HEADS, NORMED=norms is not None, num_warps=4,
    )  # fmt: skip
    q, k, v = qkv.unflatten(1, (-1, 2 * half)).split((heads, kv_heads, kv_heads), dim=1)
    if center is not None:
        k.sub_(center)
    return q, k, v
