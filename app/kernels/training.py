"""The operations of training a model whose own weights are frozen, on the CPU.

The forward pass is `native`'s. The ways back are single passes too, and keep no more than their
arguments: through torch's own operators they would take as long as the matrix products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from app.kernels import native, reference
from app.kernels.native import _DTYPES
from app.kernels.reference import allocate_cache, angles, attend, draw, greatest

try:
    from app.kernels import _cpu  # type: ignore[attr-defined,unused-ignore]
except ImportError:
    _cpu = None

__all__ = [
    "allocate_cache",
    "angles",
    "attend",
    "causal_attention",
    "draw",
    "greatest",
    "rms_norm",
    "rotate",
    "silu_and_mul",
    "token_scores",
]

# Queries that attend together: fewer would make for small products, more for more that is masked.
_QUERIES = 256


def usable(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether these operations compute on `device` in `dtype`."""
    return device.type == "cpu" and dtype in (torch.float32, torch.bfloat16) and native.available()


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


def causal_attention(q: Tensor, k: Tensor, v: Tensor, *, rows: int, window: int | None) -> Tensor:
    """`reference.causal_attention`; of bfloat16 through plain products, which torch's kernel is
    slower than on the way back.
    """
    if q.dtype != torch.bfloat16 or rows != 1:
        return reference.causal_attention(q, k, v, rows=rows, window=window)
    out: Tensor = _Attention.apply(q, k, v, window)  # type: ignore[no-untyped-call]
    return out


class _Attention(torch.autograd.Function):
    """One sequence. Blocks of queries see the keys up to their last one; probabilities are
    computed anew on the way back. The queries of all heads that share a key stand side by side.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.window = window
        keys, values = (x.transpose(0, 1).contiguous() for x in (k, v))
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        for start, end, first in _blocks(len(q), window):
            weights = _weights(_grouped(q, start, end, len(keys)), keys[:, first:end],
                               start - first, window)  # fmt: skip
            _scatter(out, torch.bmm(weights, values[:, first:end]), start, end)
        return out.flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v = ctx.saved_tensors
        keys, values = (x.transpose(0, 1).contiguous() for x in (k, v))
        grad = grad.view(q.shape)
        grad_q = torch.empty_like(q, memory_format=torch.contiguous_format)
        grad_k, grad_v = torch.zeros_like(keys), torch.zeros_like(values)
        for start, end, first in _blocks(len(q), ctx.window):
            seen = slice(first, end)
            queries = _grouped(q, start, end, len(keys))
            weights = _weights(queries, keys[:, seen], start - first, ctx.window)
            own = _grouped(grad, start, end, len(keys))
            grad_v[:, seen] += torch.bmm(weights.transpose(1, 2), own)
            slopes = torch.bmm(own, values[:, seen].transpose(1, 2))
            slopes = torch._softmax_backward_data(slopes, weights, -1, q.dtype)
            slopes.mul_(q.shape[2] ** -0.5)
            grad_k[:, seen] += torch.bmm(slopes.transpose(1, 2), queries)
            _scatter(grad_q, torch.bmm(slopes, keys[:, seen]), start, end)
        return grad_q, grad_k.transpose(0, 1), grad_v.transpose(0, 1), None


def _blocks(length: int, window: int | None) -> list[tuple[int, int, int]]:
    """Queries [start, end), and the first key that one of them sees."""
    return [
        (start, min(start + _QUERIES, length), 0 if window is None else max(0, start - window + 1))
        for start in range(0, length, _QUERIES)
    ]


def _grouped(x: Tensor, start: int, end: int, kv_heads: int) -> Tensor:
    """[tokens, heads, head_dim] -> [kv_heads, heads / kv_heads * (end - start), head_dim]."""
    rows = x[start:end].unflatten(1, (kv_heads, -1))
    grouped: Tensor = rows.permute(1, 2, 0, 3).reshape(kv_heads, -1, x.shape[2])
    return grouped


def _scatter(target: Tensor, block: Tensor, start: int, end: int) -> None:
    """The reverse of `_grouped`, into target [tokens, heads, head_dim]."""
    kv_heads, _, head_dim = block.shape
    rows = block.view(kv_heads, -1, end - start, head_dim).permute(2, 0, 1, 3)
    target[start:end].unflatten(1, (kv_heads, -1)).copy_(rows)


def _weights(queries: Tensor, keys: Tensor, offset: int, window: int | None) -> Tensor:
    """Probabilities [kv_heads, queries, keys]; the first query is the key at `offset`."""
    count = keys.shape[1]
    scores = torch.bmm(queries, keys.transpose(1, 2)).mul_(keys.shape[2] ** -0.5)
    query = torch.arange(offset, count)[:, None]
    key = torch.arange(count)
    hidden = key > query
    if window is not None:
        hidden |= key <= query - window
    scores.unflatten(1, (-1, count - offset)).masked_fill_(hidden, -torch.inf)
    return torch.softmax(scores, -1)


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
) -> None:
    """Turns `grad`, of the results of `rotate` side by side, into that of its argument qkv."""
    tokens, head_dim, kind = qkv.shape[0], 2 * cos.shape[1], _DTYPES[qkv.dtype]
    q_norm, k_norm = (0, 0) if norms is None else (norms[0].data_ptr(), norms[1].data_ptr())
    _cpu.rotary_backward(
        grad.data_ptr(), kind, grad.stride(0), cos.data_ptr(), sin.data_ptr(),
        q_norm, k_norm, eps, tokens, heads, kv_heads, head_dim,
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
