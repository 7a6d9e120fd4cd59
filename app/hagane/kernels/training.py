"""The operations of training a model whose own weights are frozen, on the CPU.

The forward pass is `native`'s. The ways back are single passes too, and keep no more than their
arguments: through torch's own operators they would take as long as the matrix products.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hagane.kernels import native, reference
from hagane.kernels.blocked_attention import causal_attention
from hagane.kernels.native import _DTYPES, _INT8, PackedWeight, _pack, padded
from hagane.kernels.reference import allocate_cache, angles, attend, draw, greatest

try:
    from hagane.kernels import _cpu  # type: ignore[attr-defined,unused-ignore]
except ImportError:
    _cpu = None

__all__ = [
    "allocate_cache",
    "angles",
    "attend",
    "causal_attention",
    "draw",
    "greatest",
    "pack_transposed",
    "rms_norm",
    "rotate",
    "sequence_attention",
    "silu_and_mul",
    "token_scores",
]


def usable(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether these operations compute on `device` in `dtype`."""
    return device.type == "cpu" and dtype in (torch.float32, torch.bfloat16) and native.available()


def pack_transposed(codes: Tensor, scale: Tensor) -> PackedWeight:
    """The transpose [in, out] of what `pack_int8` packs: x is multiplied by `scale` [out] first."""
    ones = torch.ones(padded(codes.shape[1]))
    return _pack(_INT8, codes.t(), len(codes), ones, None, 0, scale.float().contiguous())


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x, weight = x.contiguous(), weight.to(x.dtype)
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return native.rms_norm(x, weight, eps)

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
        return native.silu_and_mul(gate_up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _silu_and_mul_backward(grad.contiguous(), *ctx.saved_tensors)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, options: dict[str, Any]
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(qkv, cos, sin)
        ctx.options = options
        # `native` rotates in place; what is kept is the argument.
        return native.rotate(qkv.clone(), cos, sin, **options)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        grad = torch.cat([part.flatten(1) for part in grads], dim=1)
        _rotate_backward(grad, *ctx.saved_tensors, **ctx.options)
        return grad, None, None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    out: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return out


def silu_and_mul(gate_up: Tensor) -> Tensor:
    out: Tensor = _SiluAndMul.apply(gate_up)  # type: ignore[no-untyped-call]
    return out


def rotate(qkv: Tensor, cos: Tensor, sin: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = _Rotate.apply(qkv.contiguous(), cos, sin, options)  # type: ignore[no-untyped-call]
    return q, k, v


def sequence_attention(
    q: Tensor, k: Tensor, v: Tensor, *, lengths: Sequence[int], window: int | None
) -> Tensor:
    """`reference.sequence_attention`; of bfloat16 in one native pass each way."""
    if q.dtype != torch.bfloat16:
        return reference.each_sequence(causal_attention, q, k, v, lengths, window)
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
        _cpu.sequence_attention(*_attention_arguments(q, k, v, out, starts, window))
        return out.flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, starts = ctx.saved_tensors
        grads = [torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v)]
        grad = grad.contiguous().view(q.shape)
        arguments = _attention_arguments(q, k, v, grad, starts, ctx.window)
        _cpu.sequence_attention_backward(*arguments, *_matrices(*grads))
        return *grads, None, None


def _attention_arguments(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, starts: Tensor, window: int | None
) -> list[float]:
    """Heads lie side by side in a row; rows may be further apart."""
    heads, head_dim = q.shape[1:]
    shape = len(starts) - 1, heads, k.shape[1], head_dim
    scale = head_dim**-0.5
    return [*_matrices(q, k, v, out), starts.data_ptr(), *shape, window or 0, scale]


def _matrices(*tensors: Tensor) -> list[int]:
    """Address, dtype and the distance of rows of each tensor."""
    return [n for t in tensors for n in (t.data_ptr(), _DTYPES[t.dtype], t.stride(0))]


def _rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The gradient by x of `rms_norm`; all contiguous, of one dtype."""
    out = torch.empty_like(x)
    features, kind = x.shape[-1], _DTYPES[x.dtype]
    _cpu.rms_norm_backward(
        grad.data_ptr(), kind, features, x.data_ptr(), kind, features, weight.data_ptr(), eps,
        x.numel() // features, features, out.data_ptr(), kind, features,
    )  # fmt: skip
    return out


def _silu_and_mul_backward(grad: Tensor, gate_up: Tensor) -> Tensor:
    """The gradient by gate_up of `silu_and_mul`; contiguous, of one dtype."""
    out = torch.empty_like(gate_up)
    features, kind = grad.shape[1], _DTYPES[grad.dtype]
    _cpu.silu_and_mul_backward(
        grad.data_ptr(), kind, features, gate_up.data_ptr(), kind, 2 * features,
        grad.shape[0], features, out.data_ptr(), kind, 2 * features,
    )  # fmt: skip
    return out


def _rotate_backward(
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
    """Turns `grad`, of the results of `rotate` side by side, into that of its argument qkv.

    The center is a constant: it has no part in this.
    """
    tokens, head_dim, kind = qkv.shape[0], 2 * cos.shape[1], _DTYPES[qkv.dtype]
    q_norm, k_norm = (0, 0) if norms is None else (norms[0].data_ptr(), norms[1].data_ptr())
    _cpu.rotary_backward(
        grad.data_ptr(), kind, grad.stride(0), cos.data_ptr(), sin.data_ptr(),
        q_norm, k_norm, 0, eps, tokens, heads, kv_heads, head_dim,
        qkv.data_ptr(), kind, qkv.stride(0),
    )  # fmt: skip


def token_scores(logits: Tensor, targets: Tensor, *, slopes: bool) -> tuple[Tensor, Tensor]:
    rows, vocab = logits.shape
    logprobs = torch.empty(rows, dtype=torch.float32)
    first = torch.empty(rows, dtype=torch.bool)
    _cpu.token_scores(
        logits.data_ptr(), _DTYPES[logits.dtype], logits.stride(0),
        targets.data_ptr(), rows, vocab,
        logprobs.data_ptr(), first.data_ptr(), int(slopes),
    )  # fmt: skip
    return logprobs, first
