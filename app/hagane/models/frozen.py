"""Frozen layers in training: their outputs, and the gradient with respect to their input.

`DequantizedLinear` computes in x's dtype from any stored form. `Int8TrainingLinear` computes as
serving does with the native kernels: on 8-bit inputs, in the backward pass too. For W = scale *
codes, with one scale per output, the gradient of the input is (dy * scale) codes: the same kind of
product, whose input is quantized token by token. That is SwitchBack (Wortsman et al., 2023,
arXiv:2304.13013); its 16-bit gradients of weights are here those of the adapter alone. The backward
pass of a head stays in floats: its gradients are the probabilities of a vocabulary, and 8 bits
would lose the many small ones, which carry most of the signal.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hagane.kernels import cpu
from hagane.models.formats.int8 import Int8Embedding
from hagane.models.formats.layer import FrozenWeights, Linear, rotated

if TYPE_CHECKING:
    from hagane.models.decoder import Transformer


class DequantizedLinear(nn.Module):
    """A linear layer, dequantized for each product."""

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


class Int8TrainingLinear(nn.Module):
    """A linear layer on 8-bit inputs, with the native kernels."""

    def __init__(self, frozen: FrozenWeights) -> None:
        super().__init__()
        self.frozen = frozen

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return cpu.linear(x.contiguous(), self.frozen.weight, residual=residual)

    def gradient(self, grad: Tensor) -> Tensor:
        """[tokens, out] -> [tokens, in]."""
        grad = cpu.linear(grad.contiguous(), self.frozen.transposed)
        block = self.frozen.rotation
        if not block:
            return grad
        # A product with the rotation's matrix: a tenth of the time of the fast transform in torch.
        return torch.mm(grad.view(-1, block), _rotation(block, grad.dtype)).view_as(grad)


@cache
def _rotation(block: int, dtype: torch.dtype) -> Tensor:
    """The rotation of `block` features as a matrix, its own inverse."""
    # A tensor that inference made could not be part of a later graph.
    with torch.inference_mode(False):
        return rotated(torch.eye(block), block).to(dtype)


class DequantizedHead:
    """A head, dequantized once for a few products; logits are in x's dtype."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def logits(self, hidden: Tensor) -> Tensor:
        out = torch.mm(hidden, self.weight.t())
        return out if self.bias is None else out + self.bias

    def gradient(self, gradients: Tensor) -> Tensor:
        """[n, vocab] -> [n, hidden]."""
        return torch.mm(gradients, self.weight)


class TrainingEmbedding(nn.Module):
    """An embedding that may be the head, packed as serving packs it.

    `dequantized` [vocab, hidden] are its weights in the backward pass.
    """

    def __init__(self, packed: nn.Module, dequantized: Tensor) -> None:
        super().__init__()
        self.packed, self.dequantized = packed, dequantized

    def forward(self, ids: Tensor) -> Tensor:
        rows: Tensor = self.packed(ids)
        return rows

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, hidden] -> float32 [n, vocab]."""
        scores: Tensor = self.packed.logits(hidden.contiguous())  # type: ignore[operator]
        return scores

    def gradient(self, gradients: Tensor) -> Tensor:
        """Float32 [n, vocab] -> [n, hidden] in the rows' dtype."""
        return torch.mm(gradients.to(self.dequantized.dtype), self.dequantized)


class Int8TrainingEmbedding(TrainingEmbedding):
    """An 8-bit embedding that is also the head, with the native kernels.

    `dtype` is that of the embedded rows and of the dequantized weights in the backward pass.
    """

    def __init__(self, layer: Int8Embedding, dtype: torch.dtype) -> None:
        super().__init__(layer.for_cpu(dtype), layer.matrix(dtype))


def use_int8_training(model: Transformer, dtype: torch.dtype) -> None:
    """Let the quantized layers and the head compute forward and backward with the native kernels.

    Each layer gives up its stored form before the next one is converted: that bounds the memory. An
    embedding that is not the head only looks up rows and stays as it is.
    """
    head = model.head
    parents = [
        module
        for module in model.modules()
        if any(isinstance(child, DequantizedLinear | Int8Embedding) for child in module.children())
    ]
    for parent in parents:
        for name, child in list(parent.named_children()):
            if isinstance(child, DequantizedLinear):
                packed = child.layer.pack_for_training()
                if packed is not None:
                    setattr(parent, name, Int8TrainingLinear(packed))
            elif child is head and isinstance(child, Int8Embedding):
                setattr(parent, name, Int8TrainingEmbedding(child, dtype))
