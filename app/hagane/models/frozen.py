"""Frozen layers under training: what they compute, and the gradient by their input.

`Widened` computes in x's dtype from any stored form. `Integers` computes as serving with the native
kernels does, forward on 8-bit inputs, and so back: of W = scale * codes, a scale per output, the
gradient by the input is (dy * scale) codes, a product of the same kind whose input is quantized
token by token, too. That is SwitchBack (Wortsman et al., 2023, arXiv:2304.13013), whose gradients
of weights, in 16 bits, are here those of an adapter alone. A head's way back stays in floats: of
its slopes, a vocabulary's probabilities, 8 bits would lose the many small ones, and with them most
of what is to be learnt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hagane.kernels import cpu, training
from hagane.models.linear import Int4, Int8, Int8Embedding, Linear, quantize_int8, rotated

if TYPE_CHECKING:
    from hagane.models.decoder import Transformer


class Widened(nn.Module):
    """A linear layer, dequantized anew for each product."""

    def __init__(self, layer: Linear) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        out = torch.mm(x, self.layer.matrix(x.dtype).t())
        if self.layer.bias is not None:
            out += self.layer.bias
        if residual is not None:
            out += residual
        return out

    def gradient(self, grad: Tensor) -> Tensor:
        """[tokens, out] -> [tokens, in]."""
        return torch.mm(grad, self.layer.matrix(grad.dtype))


class Integers(nn.Module):
    """A linear layer of 8 or 4 bits, with the native kernels.

    The way back of 4 bits goes through 8-bit codes of the same weights: their scales differ within
    a row, so that no one factor per output could be taken out of the sum.
    """

    def __init__(self, layer: Int8 | Int4) -> None:
        super().__init__()
        # The codes' rotation is the gradient's, too.
        self.rotation = layer.rotation if isinstance(layer, Int8) else 0
        if isinstance(layer, Int8):
            codes, scale = layer.weight_int8, layer.scale
            self.weight = cpu.pack_int8(codes, scale, layer.bias, rotation=layer.rotation)
        else:
            codes, scale = quantize_int8(layer.matrix(torch.float32)).values()
            stored = layer.weight_int4, layer.scale, layer.group_size
            self.weight = cpu.pack_int4(*stored, layer.bias, rotation=layer.rotation)
        self.transposed = training.pack_transposed(codes, scale)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return cpu.linear(x.contiguous(), self.weight, residual=residual)

    def gradient(self, grad: Tensor) -> Tensor:
        """[tokens, out] -> [tokens, in]."""
        return rotated(cpu.linear(grad.contiguous(), self.transposed), self.rotation)


class WidenedHead:
    """A head, dequantized once for a few products; logits are in x's dtype."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def logits(self, hidden: Tensor) -> Tensor:
        return torch.mm(hidden, self.weight.t())

    def gradient(self, slopes: Tensor) -> Tensor:
        """[n, vocab] -> [n, hidden]."""
        return torch.mm(slopes, self.weight)


class IntegerEmbedding(nn.Module):
    """An embedding of 8 bits and head, with the native kernels; `dtype` is that of its rows, and of
    the same weights on the way back.
    """

    def __init__(self, layer: Int8Embedding, dtype: torch.dtype) -> None:
        super().__init__()
        stored = layer.weight_int8, layer.scale
        self.weight = cpu.pack_int8(*stored, rotation=layer.rotation)
        self.widened = layer.matrix(dtype)

    def forward(self, ids: Tensor) -> Tensor:
        return cpu.embed(ids, self.weight, self.widened.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, hidden] -> float32 [n, vocab]."""
        return cpu.linear(hidden.contiguous(), self.weight, torch.float32)

    def gradient(self, slopes: Tensor) -> Tensor:
        """Float32 [n, vocab] -> [n, hidden] in the rows' dtype."""
        return torch.mm(slopes.to(self.widened.dtype), self.widened)


def compute_in_integers(model: Transformer, dtype: torch.dtype) -> None:
    """Let the quantized layers and head compute with the native kernels, both ways.

    Their stored form is given up one after the other, so that little more memory is needed. An
    embedding that is not the head only looks up rows.
    """
    head = model.head
    parents = [
        module
        for module in model.modules()
        if any(isinstance(child, Widened | Int8Embedding) for child in module.children())
    ]
    for parent in parents:
        for name, child in list(parent.named_children()):
            if isinstance(child, Widened) and isinstance(child.layer, Int8 | Int4):
                setattr(parent, name, Integers(child.layer))
            elif child is head and isinstance(child, Int8Embedding):
                setattr(parent, name, IntegerEmbedding(child, dtype))
