"""The training operations of the C++ extension, typed; see `extension`."""

from __future__ import annotations

from torch import Tensor

try:
    from hagane.kernels import _cpu  # type: ignore[attr-defined,unused-ignore]
except ImportError:  # built without a C++ compiler
    _cpu = None


def rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
    """All [rows, features] but weight [features], of one dtype."""
    _cpu.rms_norm_backward(grad=grad, x=x, weight=weight, eps=eps, out=out)


def silu_and_mul_backward(grad: Tensor, gate_up: Tensor, out: Tensor) -> None:
    """grad [rows, features], gate_up and out [rows, 2 * features]."""
    _cpu.silu_and_mul_backward(grad=grad, gate_up=gate_up, out=out)


def apply_rope_backward(
    grad: Tensor,
    heads: int,
    kv_heads: int,
    cos: Tensor,
    sin: Tensor,
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
    before: Tensor,
) -> None:
    """grad, like the qkv `before` that was rotated, in place."""
    q_norm, k_norm = (None, None) if norms is None else norms
    _cpu.apply_rope_backward(
        qkv=grad, heads=heads, kv_heads=kv_heads, rotated=2 * cos.shape[1], interleaved=0, whole=0,
        cos=cos, sin=sin, q_norm=q_norm, k_norm=k_norm, center=None, eps=eps, offset=0.0,
        before=before,
    )  # fmt: skip


def token_scores(
    logits: Tensor, targets: Tensor, logprobs: Tensor, first: Tensor, *, gradients: bool
) -> None:
    """logits [rows, vocab], int64 targets -> float32 logprobs, bool first, [rows] each."""
    _cpu.token_scores(
        logits=logits, targets=targets, logprobs=logprobs, first=first, gradients=int(gradients)
    )


def sequence_attention(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, starts: Tensor, window: int, scale: float
) -> None:
    """bfloat16 [tokens, heads, head_dim], int64 starts [sequences + 1]; window 0 is none."""
    _cpu.sequence_attention(
        q=q, k=k, v=v, out=out, sequences=len(starts) - 1, starts=starts, window=window, scale=scale
    )


def sequence_attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad: Tensor,
    starts: Tensor,
    window: int,
    scale: float,
    out: tuple[Tensor, Tensor, Tensor],
) -> None:
    """The gradient of the result -> those of q, k and v in `out`."""
    _cpu.sequence_attention_backward(
        q=q, k=k, v=v, out=grad, sequences=len(starts) - 1, starts=starts, window=window,
        scale=scale, grad_q=out[0], grad_k=out[1], grad_v=out[2],
    )  # fmt: skip


def norm(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
    """float32 x [rows, features], weight [features] -> out in its own dtype."""
    _cpu.norm(out=out, x=x, weight=weight, eps=eps)


def norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    eps: float,
    out: Tensor,
    parts: Tensor,
    weights: Tensor,
) -> None:
    """Gradients by x to `out`, by weight to `weights`; `parts` [rows / 64, features] is scratch."""
    _cpu.norm_backward(
        grad=grad, x=x, weight=weight, eps=eps, out=out, parts=parts, weights=weights
    )


def causal_softmax(
    scores: Tensor,
    gradients: Tensor | None,
    *,
    queries: int,
    offset: int,
    window: int,
    scale: float,
) -> None:
    """scores [rows, keys] in place; `gradients` like scores (CausalSoftmax in ops.h)."""
    _cpu.causal_softmax(
        scores=scores, gradients=gradients, queries=queries, offset=offset, window=window,
        scale=scale,
    )  # fmt: skip
