"""The operations of training a model whose own weights are frozen, on the CPU.

The forward pass is that of serving. Backward passes are single passes too, and keep no more than
their arguments: through torch's own operators they would take as long as the matrix products.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hagane.kernels import reference
from hagane.kernels.cpu import operations, threads, training_extension
from hagane.kernels.cpu.blocked_attention import causal_attention, prescaled
from hagane.kernels.cpu.packing import pack_transposed
from hagane.kernels.reference import (
    activate,
    allocate_cache,
    argmax,
    gate_rows,
    heaviest,
    latent_heads,
    layer_norm,
    narrow_heads,
    paged_attention,
    restrict,
    rope_tables,
    route,
    sample,
    samples,
    scaled_add,
    softcap,
)

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
    "pack_transposed",
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


def usable(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether these operations compute on `device` in `dtype`."""
    return device.type == "cpu" and dtype in (torch.float32, torch.bfloat16) and threads.available()


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x, weight = x.contiguous(), weight.to(x.dtype)
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return operations.rms_norm(x, weight, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, weight = ctx.saved_tensors
        return _rms_norm_backward(grad.contiguous(), x, weight, ctx.eps), None, None


class _SiluAndMul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate_up = gate_up.contiguous()
        ctx.save_for_backward(gate_up)
        return operations.silu_and_mul(gate_up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _silu_and_mul_backward(grad.contiguous(), *ctx.saved_tensors)


class _ApplyRope(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, options: dict[str, Any]
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(qkv, cos, sin)
        ctx.options = options
        # `operations` rotates in place; what is kept is the argument.
        return operations.apply_rope(qkv.clone(), cos, sin, **options)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        grad = torch.cat([part.flatten(1) for part in grads], dim=1)
        _apply_rope_backward(grad, *ctx.saved_tensors, **ctx.options)
        return grad, None, None, None


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, offset: float = 0.0, residual: Tensor | None = None
) -> Tensor:
    if offset:
        return reference.rms_norm(x, weight, eps, offset, residual)
    out: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return out if residual is None else residual + out


def silu_and_mul(gate_up: Tensor) -> Tensor:
    out: Tensor = _SiluAndMul.apply(gate_up)  # type: ignore[no-untyped-call]
    return out


def apply_rope(
    qkv: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    *,
    offset: float = 0.0,
    interleaved: bool = False,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    counts = options["heads"], options["kv_heads"], options["kv_heads"]
    head_dim = qkv.shape[1] // sum(counts)
    norms = options["norms"]
    per_head = norms is None or len(norms[0]) == head_dim
    whole = cos is not None and 2 * cos.shape[1] == head_dim
    if not (whole and per_head) or interleaved or offset:
        return reference.apply_rope(
            qkv, cos, sin, offset=offset, interleaved=interleaved, **options
        )
    q, k, v = _ApplyRope.apply(qkv.contiguous(), cos, sin, options)  # type: ignore[no-untyped-call]
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
    """`reference.sequence_attention`; of bfloat16 in one native pass each way."""
    if q.dtype != torch.bfloat16 or cap or sinks is not None:
        options = {"window": window, "scale": scale, "cap": cap, "sinks": sinks}
        return reference.each_sequence(causal_attention, q, k, v, lengths, **options)
    q = prescaled(q, scale)
    out: Tensor = _SequenceAttention.apply(q, k, v, lengths, window)  # type: ignore[no-untyped-call]
    return out


class _SequenceAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], window: int | None
    ) -> Tensor:
        starts = torch.tensor([0, *accumulate(lengths)])
        out = torch.empty(q.shape, dtype=q.dtype)
        ctx.save_for_backward(q, k, v, starts)
        ctx.window = window
        training_extension.sequence_attention(q, k, v, out, starts, window or 0, q.shape[2] ** -0.5)
        return out.flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, starts = ctx.saved_tensors
        grad_q, grad_k, grad_v = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v))
        grad = grad.contiguous().view(q.shape)
        training_extension.sequence_attention_backward(
            q, k, v, grad, starts, ctx.window or 0, q.shape[2] ** -0.5, (grad_q, grad_k, grad_v)
        )
        return grad_q, grad_k, grad_v, None, None


def _rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The gradient by x of `rms_norm`; all contiguous, of one dtype."""
    out = torch.empty_like(x)
    flat = (-1, x.shape[-1])
    training_extension.rms_norm_backward(grad.view(flat), x.view(flat), weight, eps, out.view(flat))
    return out


def _silu_and_mul_backward(grad: Tensor, gate_up: Tensor) -> Tensor:
    """The gradient by gate_up of `silu_and_mul`; contiguous, of one dtype."""
    out = torch.empty_like(gate_up)
    training_extension.silu_and_mul_backward(grad, gate_up, out)
    return out


def _apply_rope_backward(
    grad: Tensor,
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    heads: int,
    kv_heads: int,
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
    center: Tensor | None = None,
) -> None:
    """Turns `grad`, of the results of `apply_rope` side by side, into that of its argument qkv.

    The center is a constant: it has no part in this.
    """
    training_extension.apply_rope_backward(grad, heads, kv_heads, cos, sin, norms, eps, qkv)


def token_scores(logits: Tensor, targets: Tensor, *, gradients: bool) -> tuple[Tensor, Tensor]:
    logprobs = torch.empty(len(logits), dtype=torch.float32)
    first = torch.empty(len(logits), dtype=torch.bool)
    training_extension.token_scores(logits, targets, logprobs, first, gradients=gradients)
    return logprobs, first
