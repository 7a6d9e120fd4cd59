"""Cross-entropy of rows of tokens; logits are computed in parts, to bound their memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from hagane.kernels.cpu.pretraining import Pretraining
from hagane.models.attention import PackedCausal, PackedPretraining
from hagane.models.decoder import Transformer
from hagane.models.formats.dense import DenseEmbedding

_LOSS_ROWS = 2048


class HeadLoss(Protocol):
    """The forward and backward pass of a model with float32 weights.

    An implementation decides the operators and the dtype; the weights' gradients are float32.

        loss: HeadLoss = TorchLoss(torch.bfloat16)
        loss.mean(transformer, rows).backward()
    """

    def mean(self, model: Transformer, rows: Tensor) -> Tensor:
        """Mean cross-entropy of int64 rows [n, length + 1], in nats per token; differentiable."""
        ...

    def each(self, model: Transformer, rows: Tensor) -> Tensor:
        """Cross-entropy of every token in nats, float32 [n * length]."""
        ...

    def next_logits(self, model: Transformer, ids: Tensor) -> Tensor:
        """Logits of the token after int64 ids [tokens]: float32 [1, vocab]."""
        ...


@dataclass(frozen=True)
class TorchLoss:
    """torch's operators, on any device."""

    dtype: torch.dtype

    def mean(self, model: Transformer, rows: Tensor) -> Tensor:
        return self.each(model, rows).mean()

    def each(self, model: Transformer, rows: Tensor) -> Tensor:
        inputs, targets = rows[:, :-1].flatten(), rows[:, 1:].flatten()
        context = PackedCausal(rows=len(rows), length=rows.shape[1] - 1, device=rows.device)
        half = self.dtype == torch.bfloat16
        with torch.autocast(rows.device.type, torch.bfloat16, enabled=half):
            hidden = model(inputs, context)
            losses = [
                F.cross_entropy(model.logits(part), wanted, reduction="none")
                for part, wanted in zip(
                    hidden.split(_LOSS_ROWS), targets.split(_LOSS_ROWS), strict=True
                )
            ]
        return torch.cat(losses)

    def next_logits(self, model: Transformer, ids: Tensor) -> Tensor:
        hidden = model(ids, PackedCausal(rows=1, length=len(ids), device=ids.device))
        return model.logits(hidden[-1:])


@dataclass(frozen=True)
class CpuLoss:
    """Hagane's CPU kernels, for a model that `use_operations` gave the same `operations`."""

    operations: Pretraining

    def mean(self, model: Transformer, rows: Tensor) -> Tensor:
        hidden = self._hidden(model, rows[:, :-1])
        return self.operations.mean_loss(hidden, _head(model), rows[:, 1:].flatten())

    def each(self, model: Transformer, rows: Tensor) -> Tensor:
        hidden = self._hidden(model, rows[:, :-1])
        return self.operations.losses(hidden, _head(model), rows[:, 1:].flatten())

    def next_logits(self, model: Transformer, ids: Tensor) -> Tensor:
        return model.logits(self._hidden(model, ids[None])[-1:].float())

    def _hidden(self, model: Transformer, ids: Tensor) -> Tensor:
        rows, length = ids.shape
        hidden: Tensor = model(ids.flatten(), PackedPretraining(rows, length, self.operations))
        return hidden


def _head(model: Transformer) -> Tensor:
    if not isinstance(model.head, DenseEmbedding):
        raise TypeError("only dense weights can be pretrained")
    return model.head.weight
