"""The operations of training every weight of a model on the CPU.

Weights, their gradients and the residual stream are float32; products run in `dtype` through
torch's, everything between them in single native passes, forward and back. Sums run in an order
that does not depend on the threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hagane.kernels import reference
from hagane.kernels.cpu import operations, training, training_extension
from hagane.kernels.cpu.blocked_attention import causal_attention

# Rows whose share of a norm's gradient is added up by one task (`NormBackward` in cpu/ops.h).
_NORM_ROWS = 64


@dataclass(frozen=True)
class Pretraining:
    """A backend in float32 or bfloat16.

    `logits` is how many logits are computed at a time: more make larger, faster matrix products
    and take more memory.
    """

    dtype: torch.dtype
    logits: int = 1 << 24

    silu_and_mul = staticmethod(training.silu_and_mul)
    rope_tables = staticmethod(operations.rope_tables)
    causal_attention = staticmethod(causal_attention)
    token_scores = staticmethod(training.token_scores)
    latent_heads = staticmethod(reference.latent_heads)
    narrow_heads = staticmethod(reference.narrow_heads)
    allocate_cache = staticmethod(reference.allocate_cache)
    paged_attention = staticmethod(reference.paged_attention)
    argmax = staticmethod(reference.argmax)
    heaviest = staticmethod(reference.heaviest)
    restrict = staticmethod(reference.restrict)
    sample = staticmethod(reference.sample)
    samples = staticmethod(reference.samples)

    layer_norm = staticmethod(reference.layer_norm)
    activate = staticmethod(reference.activate)
    scaled_add = staticmethod(reference.scaled_add)
    softcap = staticmethod(reference.softcap)
    route = staticmethod(reference.route)
    gate_rows = staticmethod(reference.gate_rows)

    def rms_norm(
        self,
        x: Tensor,
        weight: Tensor,
        eps: float,
        offset: float = 0.0,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Float32 x [rows, features] -> [rows, features] in `dtype`."""
        if offset or residual is not None:
            raise NotImplementedError("pretraining has the norms of plain models")
        out: Tensor = _Norm.apply(x, weight, eps, self.dtype)  # type: ignore[no-untyped-call]
        return out

    def apply_rope(
        self,
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
        if cos is None or sin is None or offset or interleaved:
            raise NotImplementedError("pretraining has the rotation of plain models")
        counts = heads, kv_heads, kv_heads
        if norms is not None:
            head_dim = 2 * cos.shape[1]
            q, k, v = qkv.split([count * head_dim for count in counts], dim=1)
            q, k = (
                self.rms_norm(x.reshape(-1, head_dim).float(), norm, eps).view(x.shape)
                for x, norm in zip((q, k), norms, strict=True)
            )
            qkv = torch.cat((q, k, v), dim=1)
        q, k, v = _ApplyRope.apply(qkv, cos, sin, heads, kv_heads)  # type: ignore[no-untyped-call]
        return q, k if center is None else k - center, v

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None
    ) -> Tensor:
        """x [tokens, in] -> [tokens, out] in `dtype`, or with a float32 residual the new one."""
        out: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return out if residual is None else residual + out

    def mean_loss(self, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats of int64 targets [n], given hidden [n, features].

        `weight` [vocab, features] is the head.
        """
        loss: Tensor = _MeanLoss.apply(hidden, weight, targets, self.logits)  # type: ignore[no-untyped-call]
        return loss

    def losses(self, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of every target, float32 [n]; not differentiable."""
        narrow = weight.to(hidden.dtype)
        count = self.logits // len(weight)
        parts = [
            training.token_scores(torch.mm(rows, narrow.t()), wanted, gradients=False)[0]
            for rows, wanted in zip(hidden.split(count), targets.split(count), strict=True)
        ]
        return -torch.cat(parts)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        out = torch.empty_like(x, dtype=dtype)
        training_extension.norm(x, weight, eps, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        rows, features = x.shape
        out, of_weight = torch.empty_like(x), torch.empty_like(weight)
        parts = torch.empty(-(-rows // _NORM_ROWS), features)
        training_extension.norm_backward(grad, x, weight, ctx.eps, out, parts, of_weight)
        return out, of_weight, None, None


class _ApplyRope(torch.autograd.Function):
    """Turns queries and keys in place: nothing else needs them as they were."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cos, sin)
        ctx.heads, ctx.kv_heads = heads, kv_heads
        q, k, v = operations.apply_rope(
            qkv.detach(), cos, sin, heads=heads, kv_heads=kv_heads, norms=None, eps=0.0
        )
        return q, k, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        cos, sin = ctx.saved_tensors
        grad = torch.cat([part.flatten(1) for part in grads], dim=1)
        training_extension.apply_rope_backward(
            grad, ctx.heads, ctx.kv_heads, cos, sin, None, 0.0, grad
        )
        return grad, None, None, None, None


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        narrow = weight.to(x.dtype)
        ctx.save_for_backward(x, narrow)
        if bias is None:
            return torch.mm(x, narrow.t())
        return torch.addmm(bias.to(x.dtype), x, narrow.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, narrow = ctx.saved_tensors
        of_bias = grad.sum(0, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        return torch.mm(grad, narrow), torch.mm(grad.t(), x).float(), of_bias


class _MeanLoss(torch.autograd.Function):
    """Computes both gradients in the forward pass, since both need the logits."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, logits: int) -> Tensor:
        narrow = weight.to(hidden.dtype)
        of_hidden = torch.empty_like(hidden)
        of_weight = torch.zeros_like(weight)
        total = torch.zeros((), dtype=torch.float64)
        count = logits // len(weight)
        for start in range(0, len(hidden), count):
            rows = slice(start, start + count)
            gradients = torch.mm(hidden[rows], narrow.t())
            logprobs, _ = training.token_scores(gradients, targets[rows], gradients=True)
            total -= logprobs.sum(dtype=torch.float64)
            torch.mm(gradients, narrow, out=of_hidden[rows])
            of_weight += torch.mm(gradients.t(), hidden[rows])
        ctx.gradients = of_hidden, of_weight
        return (total / len(hidden)).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        of_hidden, of_weight = ctx.gradients
        scale = -grad.item() / len(of_hidden)
        return of_hidden.mul_(scale), of_weight.mul_(scale), None, None
