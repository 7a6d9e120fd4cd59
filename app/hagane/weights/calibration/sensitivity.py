"""How much of the loss each matrix costs in 4 bits, by gradients: which of them deserve 8.

To second order, and with the Fisher matrix in its factored form (Martens and Grosse, 2015,
arXiv:1503.05671), an error E of a matrix that maps x to y costs half the sum over outputs r of
mean(g_r^2) E_r mean(x x^T) E_r^T nats per token, where g is the gradient of the loss of targets
drawn from the model with respect to y. Inputs are taken as independent after the rotation.

Layers are read twice, once on the way up, once on the way down, and one is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from hagane.kernels import cpu
from hagane.models.attention import PackedSequences
from hagane.models.config import Quantization
from hagane.models.decoder import DecoderLayer, Transformer
from hagane.models.formats.dense import Dense
from hagane.models.formats.int4 import Int4
from hagane.models.formats.layer import rotated
from hagane.models.linear import make_projection
from hagane.models.serving_layers import quantize_natively
from hagane.models.spec import layer_projections
from hagane.weights.load import ModelLoader

# Rows of logits at a time.
_ROWS = 256


class _Factors:
    """Sums of squares of a matrix's inputs [in], rotated, and of its outputs' gradients [out]."""

    def __init__(self, rotation: int) -> None:
        self.rotation = rotation
        self.tokens = 0
        self.inputs: Tensor | float = 0.0
        self.gradients: Tensor | float = 0.0

    def observe(self, _: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        x: Tensor = arguments[0].detach()
        self.tokens += len(x)
        turned = rotated(x.float(), self.rotation) if self.rotation else x.float()
        self.inputs = self.inputs + turned.square().sum(dim=0)
        if output.requires_grad:
            output.register_hook(self._add)

    def _add(self, gradient: Tensor) -> None:
        self.gradients = self.gradients + gradient.float().square().sum(dim=0)

    def loss(self, error: Tensor) -> float:
        """Nats per token that an error [out, in], rotated, costs."""
        if not self.tokens:
            return 0.0
        weighed = error.square() @ (self.inputs / self.tokens)
        return 0.5 * float(weighed @ (self.gradients / self.tokens))


@dataclass(eq=False)
class Sensitivity:
    """Measures the projections of a model without storage; see the module."""

    model: Transformer
    loader: ModelLoader
    quantization: Quantization
    windows: Tensor
    # Windows that gradients are taken of, evenly spaced in the text.
    count: int = 4
    losses: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.windows = self.windows[:: -(-len(self.windows) // self.count)]

    def measure(self) -> Mapping[str, float]:
        """Nats per token that 4 bits cost, by the projection's path below the decoder.

        Experts are left out: few tokens read each.
        """
        layers = len(self.model.model.layers)
        self.loader.fill("model.embed_tokens")
        with torch.no_grad():
            x = self.model.model.embed(self.windows.flatten())
        inputs = []
        for number in range(layers):
            inputs.append(x)
            with torch.no_grad():
                x = self._layer(number)(x, *self._context(number))
            self._drop(f"model.layers.{number}")
        gradient = self._head_gradient(x)
        for number in reversed(range(layers)):
            gradient = self._descend(number, inputs.pop(), gradient)
        return self.losses

    def _head_gradient(self, x: Tensor) -> Tensor:
        """Of the loss of targets drawn from the model, with respect to x [tokens, hidden]."""
        for name in (
            "model.norm",
            *(() if self.model.config.tie_word_embeddings else ("lm_head",)),
        ):
            self.loader.fill(name)
        self.model.requires_grad_(False)
        generator = torch.Generator().manual_seed(0)
        gradients = []
        for rows in x.split(_ROWS):
            hidden = rows.detach().requires_grad_()
            logits = self.model.logits(self.model.model.norm(hidden))
            targets = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)
            (logits.logsumexp(-1).sum() - logits.gather(1, targets).sum()).backward()
            gradients.append(cast(Tensor, hidden.grad))
        return torch.cat(gradients)

    def _descend(self, number: int, x: Tensor, gradient: Tensor) -> Tensor:
        layer = self._layer(number)
        declared = layer_projections(self.model.config, number)
        dense = {
            name: module
            for name, module in layer.named_modules()
            if isinstance(module, Dense) and declared[name].adaptable
        }
        whole = Quantization("int4", self.quantization.group_size, self.quantization.rotated)
        with torch.device("meta"):
            small = {n: make_projection(self.model.config, number, n, whole) for n in dense}
        factors = {n: _Factors(getattr(m, "rotation", 0)) for n, m in small.items()}
        handles = [dense[n].register_forward_hook(factors[n].observe) for n in dense]
        x = x.detach().requires_grad_()
        layer(x, *self._context(number)).backward(gradient)
        for handle in handles:
            handle.remove()
        for name, module in small.items():
            if isinstance(module, Int4):
                weight = dense[name].weight.data
                error = rotated(weight.float() - _rounded(module, weight), module.rotation)
                self.losses[f"layers.{number}.{name}"] = factors[name].loss(error)
        self._drop(f"model.layers.{number}")
        return cast(Tensor, x.grad)

    def _layer(self, number: int) -> DecoderLayer:
        self.loader.fill(f"model.layers.{number}")
        layer = cast(DecoderLayer, self.model.model.layers[number])
        return layer.requires_grad_(False)

    def _context(self, number: int) -> tuple[Any, PackedSequences]:
        context = PackedSequences([self.windows.shape[1]] * len(self.windows))
        layer = cast(DecoderLayer, self.model.model.layers[number])
        return self.model.model.rotations(context.positions)[layer.self_attn.rope], context

    def _drop(self, path: str) -> None:
        self.model.get_submodule(path).to("meta")


def _rounded(module: Int4, weight: Tensor) -> Tensor:
    """Float32 weights [out, in] after rounding each to the nearest code."""
    known = cpu.available() and weight.dtype in (torch.float32, torch.bfloat16)
    stored = quantize_natively(module.native, [weight], weight.dtype) if known else None
    for name, tensor in (stored or module.quantize(weight)).items():
        setattr(module, name, tensor)
    return module.matrix(torch.float32)
