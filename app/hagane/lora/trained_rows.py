"""Rows of the embedding and the head that are trained alongside an adapter.

Tokens that a model has never seen, such as those of a widened vocabulary, say nothing through any
adapter: their rows have to be trained. PEFT calls it `trainable_token_indices`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hagane.lora.config import EMBEDDING, HEAD
from hagane.models.decoder import Transformer


class TrainedRows(nn.Module):
    """A frozen embedding of which the rows of some tokens are trained; it may be a head.

    `rows` float32 [n, hidden] stand in place of those of `ids` int64 [n]. While `enabled` is false
    it is the frozen one.
    """

    ids: Tensor
    places: Tensor

    def __init__(self, base: nn.Module, ids: Tensor, vocab_size: int) -> None:
        super().__init__()
        self.base, self.enabled = base, True
        places = torch.full((vocab_size,), -1, device=ids.device)
        places[ids] = torch.arange(len(ids), device=ids.device)
        self.register_buffer("ids", ids)
        self.register_buffer("places", places)
        self.rows = nn.Parameter(base(ids).detach().float())

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.base(ids)
        if not self.enabled:
            return out
        places = self.places[ids]
        mine = (places >= 0).nonzero()[:, 0]
        if not len(mine):
            return out
        return out.index_copy(0, mine, self.rows[places[mine]].to(out.dtype))

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, hidden] -> float32 [n, vocab]."""
        scores: Tensor = self.base.logits(hidden)  # type: ignore[operator]
        if not self.enabled:
            return scores
        return scores.index_copy(1, self.ids, (hidden @ self.rows.to(hidden.dtype).t()).float())


def train_rows(model: Transformer, ids: Sequence[int]) -> None:
    """Train the rows of these tokens from now on, of the head too; the rest stays as it is.

    Call it last: whatever else replaces the embedding or the head would undo it.
    """
    vocab_size = model.config.vocab_size
    wanted = torch.tensor(ids, device=model.model.norm.weight.device)
    model.model.embed_tokens = TrainedRows(model.model.embed_tokens, wanted, vocab_size)  # type: ignore[assignment]
    if not model.config.tie_word_embeddings:
        model.lm_head = TrainedRows(model.lm_head, wanted, vocab_size)  # type: ignore[assignment]


def trained_rows(model: Transformer) -> dict[str, Tensor]:
    """The trained rows [n, hidden] by PEFT's names of the modules; empty if there are none."""
    modules = {EMBEDDING: model.model.embed_tokens}
    if not model.config.tie_word_embeddings:
        modules[HEAD] = model.lm_head
    return {
        name: module.rows for name, module in modules.items() if isinstance(module, TrainedRows)
    }
