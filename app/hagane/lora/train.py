"""LoRA (Hu et al., 2021, arXiv:2106.09685) as a kind of linear layer, for training.

    out = W x + scale * B (A x)

W is any kind of linear layer, frozen: dense or quantized (QLoRA, Dettmers et al., 2023,
arXiv:2305.14314). The model fuses matrices that adapters keep apart; a fused layer has one A and B
for each of them. A and B are float32, however coarse the rest is computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hagane.lora.config import AdapterConfig
from hagane.models.decoder import Transformer
from hagane.models.formats.layer import Linear
from hagane.models.frozen import DequantizedLinear, Int8TrainingLinear
from hagane.models.spec import linear_shapes, parts_at


@dataclass(frozen=True)
class TrainedPart:
    """The rows [start, end) of a fused matrix, and what their change is scaled by."""

    start: int
    end: int
    scale: float


class LoRALinear(nn.Module):
    """A frozen linear layer and a low-rank change to each of its parts.

    `a` [rank, in] and `b` [part's rows, rank] are float32, in the order of `parts`. While `enabled`
    is false the layer is the frozen one.
    """

    def __init__(self, base: Linear, parts: list[TrainedPart], rank: int) -> None:
        super().__init__()
        self.base: DequantizedLinear | Int8TrainingLinear = DequantizedLinear(base)
        self.parts = parts
        self.enabled = True
        device = next(iter(base.state_dict().values())).device
        self.a = nn.ParameterList(torch.empty(rank, base.in_features, device=device) for _ in parts)
        self.b = nn.ParameterList(
            torch.zeros(part.end - part.start, rank, device=device) for part in parts
        )

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        parts: list[TrainedPart] = self.parts if self.enabled else []
        factors = (*self.a, *self.b) if parts else ()
        out: Tensor = _Adapted.apply(x, residual, self.base, parts, *factors)  # type: ignore[no-untyped-call]
        return out


class _Adapted(torch.autograd.Function):
    """The whole layer at once: fewer passes over its result, and the backward pass keeps only x.

    The parts read the same x, so that their A are one matrix. The frozen weights get no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        base: DequantizedLinear | Int8TrainingLinear,
        parts: list[TrainedPart],
        *factors: Tensor,
    ) -> Tensor:
        out: Tensor = base(x, residual)
        ctx.base, ctx.parts, ctx.added = base, parts, residual is not None
        if not parts:
            return out
        rank = len(factors[0])
        inner = torch.mm(x, torch.cat(factors[: len(parts)]).to(x.dtype).t())
        for part, h, b in zip(parts, inner.split(rank, 1), factors[len(parts) :], strict=True):
            out[:, part.start : part.end].addmm_(h.mul_(part.scale), b.to(x.dtype).t())
        ctx.save_for_backward(x, inner, *factors)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        # The first layer's input, an embedding, is frozen too.
        grad_x = ctx.base.gradient(grad) if ctx.needs_input_grad[0] else None
        residual = grad if ctx.added else None
        if not ctx.parts:
            return grad_x, residual, None, None
        x, inner, *factors = ctx.saved_tensors
        a, b = factors[: len(ctx.parts)], factors[len(ctx.parts) :]
        rank = len(a[0])
        own = [grad[:, part.start : part.end] for part in ctx.parts]
        grads_b = [
            torch.mm(g.t(), h).float() for g, h in zip(own, inner.split(rank, 1), strict=True)
        ]
        grad_inner = torch.cat(
            [
                torch.mm(g, factor.to(g.dtype)).mul_(part.scale)
                for g, factor, part in zip(own, b, ctx.parts, strict=True)
            ],
            dim=1,
        )
        grads_a = torch.mm(grad_inner.t(), x).float().split(rank)
        if grad_x is not None:
            grad_x.addmm_(grad_inner, torch.cat(a).to(grad.dtype))
        return grad_x, residual, None, None, *grads_a, *grads_b


def attach(model: Transformer, config: AdapterConfig, generator: torch.Generator) -> None:
    """Freeze the model and attach a new adapter to the matrices that `config` names.

    The others become layers without parts, which have a backward pass, too. A is drawn as in PEFT,
    B is 0: the model computes what it did before.
    """
    model.requires_grad_(False)
    placed = config.resolve(list(linear_shapes(model.config)))
    for path, layer in _linears(model):
        parts, start = [], 0
        for name, rows in (parts_at(model.config, path) or {}).items():
            if name in placed:
                parts.append(TrainedPart(start, start + rows, placed[name][1]))
            start += rows
        adapted = LoRALinear(layer, parts, config.rank)
        for a in adapted.a:
            drawn = torch.empty(a.shape).uniform_(-1, 1, generator=generator)
            a.data.copy_(drawn / math.sqrt(a.shape[1]))
        parent, _, leaf = path.rpartition(".")
        setattr(model.model.get_submodule(parent), leaf, adapted)


def factors(model: Transformer, config: AdapterConfig) -> dict[str, tuple[Tensor, Tensor]]:
    """(A, B) of every change by module path, such as `layers.0.self_attn.q_proj`."""
    placed = config.resolve(list(linear_shapes(model.config)))
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for path, layer in model.model.named_modules():
        if isinstance(layer, LoRALinear):
            names = [name for name in (parts_at(model.config, path) or {}) if name in placed]
            found |= dict(zip(names, zip(layer.a, layer.b, strict=True), strict=True))
    return found


@torch.no_grad()
def set_factors(
    model: Transformer, config: AdapterConfig, values: Mapping[str, tuple[Tensor, Tensor]]
) -> None:
    """Replace the adapter's values, by module path."""
    for name, pair in factors(model, config).items():
        for mine, other in zip(pair, values[name], strict=True):
            mine.copy_(other)


@contextmanager
def disabled(model: Transformer) -> Iterator[None]:
    """Switch the adapter off within the block."""
    layers = [layer for layer in model.modules() if isinstance(layer, LoRALinear)]
    before = [layer.enabled for layer in layers]
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer, enabled in zip(layers, before, strict=True):
            layer.enabled = enabled


def _linears(model: Transformer) -> list[tuple[str, Linear]]:
    return [(n, m) for n, m in model.model.named_modules() if isinstance(m, Linear)]
