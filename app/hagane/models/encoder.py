"""The encoder of BERT (Devlin et al., 2018, arXiv:1810.04805) and RoBERTa (arXiv:1907.11692).

Below a head of one label it is a cross-encoder, which scores two texts that it reads as one
(Nogueira and Cho, 2019, arXiv:1901.04085).

Sum of embeddings -> norm -> layers x (x = norm(x + attention(x)); x = norm(x + mlp(x))), on a flat
ragged batch [tokens, hidden] in which every token sees all of its own text. Module names follow
Hugging Face checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from hagane.models.encoder_config import EncoderConfig

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_new": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
}


class Embeddings(nn.Module):
    """Word, position and token type, summed and normalized."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, hidden)
        self.position_embeddings = nn.Embedding(config.position_embeddings, hidden)
        self.token_type_embeddings = nn.Embedding(config.token_types, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, config.norm_eps)
        self.first_position = config.first_position

    def forward(self, token_ids: Tensor, positions: Tensor, types: Tensor) -> Tensor:
        x = self.word_embeddings(token_ids) + self.token_type_embeddings(types)
        x = x + self.position_embeddings(positions + self.first_position)
        normed: Tensor = self.LayerNorm(x)
        return normed


class SelfAttention(nn.Module):
    """Attention in which every token of a text sees every other."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        q, k, v = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        attended = [
            functional.scaled_dot_product_attention(*text)
            for text in zip(*(x.split(lengths, 1) for x in (q, k, v)), strict=True)
        ]
        return torch.cat(attended, 1).transpose(0, 1).reshape(x.shape)

    def _split(self, x: Tensor) -> Tensor:
        """[tokens, hidden] -> [heads, tokens, head_dim]."""
        return x.view(len(x), self.heads, -1).transpose(0, 1)


class Output(nn.Module):
    """A projection, added to what came in, and a norm."""

    def __init__(self, inputs: int, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.norm_eps)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        normed: Tensor = self.LayerNorm(self.dense(x) + residual)
        return normed


class EncoderLayer(nn.Module):
    """Attention and MLP, each with its norm after it."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention = nn.ModuleDict(
            {"self": SelfAttention(config), "output": Output(config.hidden_size, config)}
        )
        dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.intermediate = nn.ModuleDict({"dense": dense})
        self.output = Output(config.intermediate_size, config)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        x = self.attention["output"](self.attention["self"](x, lengths), x)
        inner = self.activation(self.intermediate["dense"](x))
        out: Tensor = self.output(inner, x)
        return out


class Encoder(nn.Module):
    """Everything below a head."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = nn.Module()
        self._layers = [EncoderLayer(config) for _ in range(config.layers)]
        self.encoder.layer = nn.ModuleList(self._layers)

    def forward(
        self, token_ids: Tensor, lengths: Sequence[int], types: Tensor | None = None
    ) -> Tensor:
        """int64 ids [tokens] of texts of these lengths, in a row -> [tokens, hidden].

        `types` are their token types, the first where there are none.
        """
        positions = torch.cat([torch.arange(n, device=token_ids.device) for n in lengths])
        types = torch.zeros_like(token_ids) if types is None else types
        x: Tensor = self.embeddings(token_ids, positions, types)
        for layer in self._layers:
            x = layer(x, lengths)
        return x


class ScoringHead(nn.Module):
    """One score of each pair of texts, from the state of its first token."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.out = nn.Linear(config.hidden_size, 1)
        self._scale = torch.sigmoid if config.scale == "sigmoid" else nn.Identity()

    def forward(self, first: Tensor) -> Tensor:
        """[pairs, hidden] -> [pairs, 1]."""
        scores: Tensor = self._scale(self.out(torch.tanh(self.dense(first))))
        return scores


def head_names(config: EncoderConfig) -> dict[str, str]:
    """The checkpoint's names of a head's layers: BERT's pooler is part of its encoder."""
    if config.architecture.startswith("Bert"):
        return {"dense": "bert.pooler.dense", "out": "classifier"}
    return {"dense": "classifier.dense", "out": "classifier.out_proj"}
