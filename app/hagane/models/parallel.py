"""The modules of one rank's part of a model that meet those of the other ranks.

Between two of them ranks compute alone: two sums a layer, one of the embedded tokens, and the
logits for the first rank.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from hagane.kernels import cpu
from hagane.kernels.collective import Group
from hagane.models.decoder import Transformer
from hagane.models.mlp import Linears
from hagane.models.moe import MixtureOfExperts


def join(model: Transformer, group: Group, vocab_size: int) -> None:
    """Have one rank's part of a model, as it serves, compute with the other ranks.

    The whole model has `vocab_size` tokens. Adapters must have their places already.
    """
    if model.config.vocab_size < vocab_size:
        decoder = model.model
        size = model.config.vocab_size
        decoder.embed_tokens = DividedEmbedding(decoder.embed_tokens, group, size)  # type: ignore[assignment]
        if not model.config.tie_word_embeddings:
            model.lm_head = DividedEmbedding(model.lm_head, group, size)  # type: ignore[assignment]
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        attention.o_proj = SummedLinear(attention.o_proj, group)  # type: ignore[union-attr,arg-type]
        if isinstance(mlp, MixtureOfExperts):
            layer.mlp = SummedMixture(mlp, group)
        else:
            mlp.down_proj = SummedLinear(mlp.down_proj, group)  # type: ignore[union-attr,arg-type]


class SummedLinear(nn.Module):
    """A linear layer whose inputs are divided: every rank's product is a summand.

    The first rank adds the residual to its own.
    """

    def __init__(self, part: nn.Module, group: Group) -> None:
        super().__init__()
        self.part, self.group = part, group

    def forward(self, x: Tensor, residual: Tensor | None = None, *changes: object) -> Tensor:
        out: Tensor = self.part(x, None if self.group.rank else residual, *changes)
        return _sum(out, self.group)


class SummedMixture(nn.Module):
    """A mixture whose experts are divided, each as an MLP is."""

    def __init__(self, part: MixtureOfExperts, group: Group) -> None:
        super().__init__()
        self.part, self.group = part, group

    def forward(self, x: Tensor, context: Linears, residual: Tensor | None) -> Tensor:
        out: Tensor = self.part(x, context, None if self.group.rank else residual)
        return _sum(out, self.group)


class DividedEmbedding(nn.Module):
    """An embedding or head of which each rank has the rows of `tokens` tokens.

    Logits come to the first rank; the others' are undefined.
    """

    def __init__(self, part: nn.Module, group: Group, tokens: int) -> None:
        super().__init__()
        self.part, self.group, self.tokens = part, group, tokens

    def forward(self, ids: Tensor) -> Tensor:
        own, known = torch.empty_like(ids), torch.empty(len(ids), 1, dtype=torch.bool)
        known = known.to(ids.device)
        cpu.call(partial(self._find, cpu.lasting(ids), own, known))
        rows: Tensor = self.part(own)
        cpu.call(partial(self._keep, cpu.lasting(rows), known))
        return _sum(rows, self.group)

    def _find(self, ids: Tensor, own: Tensor, known: Tensor) -> None:
        """The rows of int64 ids [tokens] here, any row for ids that are another rank's."""
        places = ids - self.group.rank * self.tokens
        torch.logical_and(places >= 0, places < self.tokens, out=known.view(-1))
        torch.clamp(places, 0, self.tokens - 1, out=own)

    def _keep(self, rows: Tensor, known: Tensor) -> None:
        """Those of known ids, and zeros, in the place of `rows`."""
        rows.mul_(known)

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, hidden] -> float32 [n, vocab]."""
        part: Tensor = self.part.logits(hidden)  # type: ignore[operator]
        shape = len(part), self.group.ranks * self.tokens
        if part.device.type == "cpu":
            whole = cpu.empty(*shape, dtype=torch.float32)
        else:
            whole = torch.empty(shape, device=part.device)
        cpu.call(partial(self.group.collect, cpu.lasting(part), cpu.lasting(whole)))
        return whole


def _sum(product: Tensor, group: Group) -> Tensor:
    cpu.call(partial(group.add, cpu.lasting(product)))
    return product
