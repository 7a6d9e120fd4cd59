"""Decoders that were trained as encoders: every token sees those after it, too.

EmbeddingGemma (Google, 2025, arXiv:2509.20354) is Gemma 3 so.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from hagane.kernels.layout import Scoring
from hagane.models.decoder import Transformer
from hagane.models.encoder_config import EncoderConfig


class WholeTexts:
    """An attention context of texts of these lengths, in a row: none sees another."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths = list(lengths)
        self.positions = torch.cat([torch.arange(n, device=device) for n in lengths])

    def linear(self, layer: nn.Module, x: Tensor, residual: Tensor | None = None) -> Tensor:
        out: Tensor = layer(x, residual)
        return out

    def attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> Tensor:
        """With a window a token sees those that are nearer, to both sides."""
        attended = []
        for text in zip(*(part.split(self.lengths) for part in (q, k, v)), strict=True):
            queries, keys, values = (part.transpose(0, 1)[None] for part in text)
            mask = _mask(len(text[0]), scoring.window, q.device)
            found = functional.scaled_dot_product_attention(
                queries, keys, values, attn_mask=mask, scale=scoring.scale, enable_gqa=True
            )
            attended.append(found[0].transpose(0, 1).flatten(1))
        return torch.cat(attended)


class BidirectionalDecoder(nn.Module):
    """A decoder without its head as an encoder."""

    def __init__(self, config: EncoderConfig, transformer: Transformer) -> None:
        super().__init__()
        self.config, self.transformer = config, transformer

    def forward(
        self, token_ids: Tensor, lengths: Sequence[int], types: Tensor | None = None
    ) -> Tensor:
        """int64 ids [tokens] of texts of these lengths, in a row -> [tokens, hidden].

        It has no `types` of tokens.
        """
        hidden: Tensor = self.transformer(token_ids, WholeTexts(lengths, token_ids.device))
        return hidden


class Projected(nn.Module):
    """An encoder and linear layers after its pooling.

    Each token has them before it: a mean of what is linear is linear of the mean.
    """

    def __init__(
        self, config: EncoderConfig, encoder: nn.Module, layers: Sequence[nn.Linear]
    ) -> None:
        super().__init__()
        self.config, self.encoder = config, encoder
        self.layers = nn.ModuleList(layers)

    def forward(
        self, token_ids: Tensor, lengths: Sequence[int], types: Tensor | None = None
    ) -> Tensor:
        """As `Encoder`, with the last layer's features."""
        x: Tensor = self.encoder(token_ids, lengths, types)
        for layer in self.layers:
            x = layer(x)
        return x


def _mask(length: int, window: int | None, device: torch.device) -> Tensor | None:
    if window is None or length <= window:
        return None
    places = torch.arange(length, device=device)
    return (places[:, None] - places).abs() < window
