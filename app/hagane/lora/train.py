"""LoRA (Hu et al., 2021, arXiv:2106.09685) as a kind of linear layer, for training.

    out = W x + scale * B (A x)

W is any kind of linear layer, frozen: dense or quantized (QLoRA, Dettmers et al., 2023,
arXiv:2305.14314). The model fuses matrices that adapters keep apart; a fused layer has one A and B
for each of them. A and B are float32, however coarse the rest is computed. With DoRA
(`lora/dora.py`) rows have magnitudes; their gradients take the rows' lengths for constants, as the
paper does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hagane.kernels import cpu
from hagane.kernels.cpu import served as served_operations
from hagane.kernels.low_rank import Part
from hagane.lora.config import AdapterConfig
from hagane.lora.served import ServedHeads, ServedProduct
from hagane.lora.trained_rows import TrainedRows
from hagane.models.decoder import Attention, Transformer, use_operations
from hagane.models.formats.dense import DenseEmbedding
from hagane.models.formats.int8 import Int8Embedding
from hagane.models.formats.layer import Linear
from hagane.models.frozen import DequantizedLinear, Int8TrainingLinear, TrainingEmbedding
from hagane.models.latent import LatentAttention
from hagane.models.latent_heads import AbsorbedHeads
from hagane.models.spec import linear_shapes, parts_at

# Of the square of a row's length: a row of zeros has none.
_SHORTEST = 1e-24


@dataclass(frozen=True)
class TrainedPart:
    """The rows [start, end) of a fused matrix, and what their change is scaled by."""

    start: int
    end: int
    scale: float


class LoRALinear(nn.Module):
    """A frozen linear layer and a low-rank change to each of its parts.

    `a` [rank, in], `b` [part's rows, rank] and DoRA's `magnitude` [part's rows] are float32, in the
    order of `parts`; without DoRA there is no magnitude. While `enabled` is false the layer is the
    frozen one. With `served` values are those of serving, and gradients what they are without.
    """

    def __init__(self, base: Linear, parts: list[TrainedPart], rank: int, dora: bool) -> None:
        super().__init__()
        self.base: DequantizedLinear | Int8TrainingLinear = DequantizedLinear(base)
        self.parts = parts
        self.enabled = True
        self.served: ServedProduct | None = None
        # What is served with its factors, if it is not the layer itself.
        self.placed: ServedHeads | None = None
        device = next(iter(base.state_dict().values())).device
        self.a = nn.ParameterList(torch.empty(rank, base.in_features, device=device) for _ in parts)
        self.b = nn.ParameterList(
            torch.zeros(part.end - part.start, rank, device=device) for part in parts
        )
        self.magnitude = nn.ParameterList()
        if dora and parts:
            self._bias = None if base.bias is None else base.bias.detach()
            lengths = base.matrix(torch.float32).norm(dim=1)
            self._lengths = [lengths[part.start : part.end] for part in parts]
            self.magnitude.extend(own.clone() for own in self._lengths)

    def tensors(self) -> list[tuple[Tensor, ...]]:
        """Of each part, in the order in which adapters are stored."""
        if self.magnitude:
            return list(zip(self.a, self.b, self.magnitude, strict=True))
        return list(zip(self.a, self.b, strict=True))

    def serve(self, weight: cpu.PackedWeight) -> None:
        """Give the values of serving with `weight`, by the factors as `place_factors` finds them.

        DoRA's layers stay as they are: serving knows their gains only once they are stored.
        """
        if self.magnitude:
            return
        self.served = ServedProduct(weight)
        if isinstance(self.base, Int8TrainingLinear):
            # The same codes: one copy of them is enough.
            self.base.frozen = replace(self.base.frozen, weight=weight)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        parts: list[TrainedPart] = self.parts if self.enabled else []
        factors = (*self.a, *self.b) if parts else ()
        scaled = bool(parts and self.magnitude)
        added = None if scaled else residual
        out: Tensor = _Adapted.apply(x, added, self.base, self.served, parts, *factors)  # type: ignore[no-untyped-call]
        if not scaled:
            return out
        own = out if self._bias is None else out - self._bias
        out = out + own * self._gains(out.shape[1]).to(out.dtype)
        return out if residual is None else residual + out

    def _gains(self, outputs: int) -> Tensor:
        """Float32 [outputs]: magnitude / length - 1, and 0 for rows that are not adapted."""
        gains, end = [], 0
        lengths = self._changed_lengths()
        for part, magnitude, length in zip(self.parts, self.magnitude, lengths, strict=True):
            gains += [length.new_zeros(part.start - end), magnitude / length - 1]
            end = part.end
        return torch.cat([*gains, lengths[-1].new_zeros(outputs - end)])

    @torch.no_grad()
    def _changed_lengths(self) -> list[Tensor]:
        """|W + scale * B A| by rows, from |W| and products with A: W is never put together."""
        products = self.base(torch.cat(list(self.a)))
        if self._bias is not None:
            products -= self._bias
        lengths = []
        for part, before, a, b, rows in zip(
            self.parts, self._lengths, self.a, self.b, products.split(len(self.a[0])), strict=True
        ):
            crossed = (b * rows[:, part.start : part.end].t()).sum(1)
            changed = (b @ (a @ a.t()) * b).sum(1)
            squares = before.square() + part.scale * (2 * crossed + part.scale * changed)
            lengths.append(squares.clamp_min(_SHORTEST).sqrt())
        return lengths


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
        served: ServedProduct | None,
        parts: list[TrainedPart],
        *factors: Tensor,
    ) -> Tensor:
        out: Tensor = (
            base(x, residual) if served is None else served(x, residual, changed=bool(parts))
        )
        ctx.base, ctx.parts, ctx.added = base, parts, residual is not None
        if not parts:
            return out
        rank = len(factors[0])
        inner = torch.mm(x, torch.cat(factors[: len(parts)]).to(x.dtype).t())
        for part, h, b in zip(parts, inner.split(rank, 1), factors[len(parts) :], strict=True):
            h.mul_(part.scale)
            if served is None:
                out[:, part.start : part.end].addmm_(h, b.to(x.dtype).t())
        ctx.save_for_backward(x, inner, *factors)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        # The first layer's input, an embedding, is frozen too.
        grad_x = ctx.base.gradient(grad) if ctx.needs_input_grad[0] else None
        residual = grad if ctx.added else None
        if not ctx.parts:
            return grad_x, residual, None, None, None
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
        return grad_x, residual, None, None, None, *grads_a, *grads_b


def attach(model: Transformer, config: AdapterConfig, generator: torch.Generator) -> None:
    """Freeze the model and attach a new adapter to the matrices that `config` names.

    The others become layers without parts, which have a backward pass, too. A is drawn as in PEFT,
    B is 0, and magnitudes are the rows' lengths: the model computes what it did before.
    """
    model.requires_grad_(False)
    placed = config.resolve(list(linear_shapes(model.config)))
    for path, layer in _linears(model):
        parts, start = [], 0
        for name, rows in (parts_at(model.config, path) or {}).items():
            if name in placed:
                parts.append(TrainedPart(start, start + rows, placed[name][1]))
            start += rows
        adapted = LoRALinear(layer, parts, config.rank, config.dora)
        for a in adapted.a:
            drawn = torch.empty(a.shape).uniform_(-1, 1, generator=generator)
            a.data.copy_(drawn / math.sqrt(a.shape[1]))
        parent, _, leaf = path.rpartition(".")
        setattr(model.model.get_submodule(parent), leaf, adapted)


def factors(model: Transformer, config: AdapterConfig) -> dict[str, tuple[Tensor, ...]]:
    """(A, B), with DoRA (A, B, magnitudes), by module path, such as `layers.0.self_attn.q_proj`."""
    placed = config.resolve(list(linear_shapes(model.config)))
    found: dict[str, tuple[Tensor, ...]] = {}
    for path, layer in model.model.named_modules():
        if isinstance(layer, LoRALinear):
            names = [name for name in (parts_at(model.config, path) or {}) if name in placed]
            found |= dict(zip(names, layer.tensors(), strict=True))
    return found


@torch.no_grad()
def set_factors(
    model: Transformer, config: AdapterConfig, values: Mapping[str, tuple[Tensor, ...]]
) -> None:
    """Replace the adapter's values, by module path."""
    for name, tensors in factors(model, config).items():
        for mine, other in zip(tensors, values[name], strict=True):
            mine.copy_(other)


def use_served_values(model: Transformer, served: Transformer) -> None:
    """Let `model`, with its adapter attached, compute what `served` computes, bit for bit.

    `served` is the same model, packed for serving with the native kernels; its matrices are used.
    Experts of a mixture stay as they are. Call `place_factors` whenever the adapter has changed.
    """
    use_operations(model, served_operations)
    # Some get a module more.
    for path, layer in list(model.model.named_modules()):
        if not isinstance(layer, LoRALinear) or ".experts." in path:
            continue
        serving = served.model.get_submodule(path)
        if isinstance(serving, AbsorbedHeads):
            _serve_over_latents(model.model.get_submodule(path.rpartition(".")[0]), layer, serving)
        else:
            layer.serve(serving.weight)  # type: ignore[arg-type]
    for mine, theirs in zip(_attentions(model), _attentions(served), strict=True):
        mine.key_center = theirs.key_center
    head: nn.Module = model.head
    if isinstance(head, DenseEmbedding | Int8Embedding):
        head = TrainingEmbedding(served.head, head.matrix(model.model.norm.weight.dtype))
    if model.config.tie_word_embeddings:
        model.model.embed_tokens = head  # type: ignore[assignment]
    else:
        model.model.embed_tokens = served.model.embed_tokens
        model.lm_head = head  # type: ignore[assignment]


def _serve_over_latents(attention: nn.Module, layer: LoRALinear, serving: AbsorbedHeads) -> None:
    """Give the values of attention over latents; with DoRA's magnitudes they are training's."""
    if isinstance(attention, LatentAttention) and not layer.magnitude:
        layer.placed = ServedHeads(serving, lambda: bool(layer.enabled and layer.parts))
        attention.served = layer.placed


def place_factors(model: Transformer) -> None:
    """Let layers with values of serving compute with the adapter as it is now."""
    for layer in model.modules():
        if not isinstance(layer, LoRALinear) or not layer.parts:
            continue
        for served in (layer.served, layer.placed):
            if served is not None:
                served.place(
                    [
                        Part(part.start, a.detach(), b.detach(), part.scale)
                        for part, a, b in zip(layer.parts, layer.a, layer.b, strict=True)
                    ]
                )


@contextmanager
def disabled(model: Transformer) -> Iterator[None]:
    """Switch the adapter off within the block, with the rows that it trains."""
    layers = [layer for layer in model.modules() if isinstance(layer, LoRALinear | TrainedRows)]
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


def _attentions(model: Transformer) -> list[Attention]:
    return [module for module in model.modules() if isinstance(module, Attention)]
