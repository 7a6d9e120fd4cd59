"""The encoder of ModernBERT (Warner et al., 2024, arXiv:2412.13663).

Embeddings -> norm -> layers x (x += attention(norm(x)); x += mlp(norm(x))) -> norm. Positions turn
queries and keys; most layers see a window around each token. Module names follow its checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from hagane.kernels import reference
from hagane.models.encoder import ACTIVATIONS
from hagane.models.encoder_config import EncoderConfig, TurnedSpec


class TurnedAttention(nn.Module):
    """Attention of each token to those of its text, or to the nearest ones."""

    def __init__(self, config: EncoderConfig, spec: TurnedSpec, layer: int) -> None:
        super().__init__()
        self.heads, hidden = config.heads, config.hidden_size
        full = layer % spec.full_every == 0
        self.reach = None if full else spec.reach
        head_dim = hidden // config.heads
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
        self.frequencies = (spec.theta if full else spec.window_theta) ** -exponents
        self.Wqkv = nn.Linear(hidden, 3 * hidden, bias=spec.attention_bias)
        self.Wo = nn.Linear(hidden, hidden, bias=spec.attention_bias)

    def forward(self, x: Tensor, positions: Tensor, lengths: Sequence[int]) -> Tensor:
        """x [tokens, hidden] and their int64 positions, of texts of these lengths."""
        q, k, v = self.Wqkv(x).view(len(x), 3, self.heads, -1).unbind(1)
        frequencies = self.frequencies.to(x.device)
        cos, sin = reference.rope_tables(positions, frequencies, 1.0)
        q, k = (reference.apply_rotation(part, cos, sin) for part in (q, k))
        attended = []
        for parts in zip(*(part.split(list(lengths)) for part in (q, k, v)), strict=True):
            queries, keys, values = (part.transpose(0, 1) for part in parts)
            mask = self._mask(len(parts[0]), x.device)
            attended.append(
                functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
            )
        out: Tensor = self.Wo(torch.cat(attended, 1).transpose(0, 1).reshape(x.shape))
        return out

    def _mask(self, length: int, device: torch.device) -> Tensor | None:
        if self.reach is None or length <= self.reach:
            return None
        places = torch.arange(length, device=device)
        return (places[:, None] - places).abs() <= self.reach


class GatedMLP(nn.Module):
    """GeGLU: of what `Wi` gives the first half's activation times the second."""

    def __init__(self, config: EncoderConfig, spec: TurnedSpec) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.activation = ACTIVATIONS[config.activation]
        self.Wi = nn.Linear(hidden, 2 * inner, bias=spec.mlp_bias)
        self.Wo = nn.Linear(inner, hidden, bias=spec.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        first, gate = self.Wi(x).chunk(2, dim=-1)
        out: Tensor = self.Wo(self.activation(first) * gate)
        return out


class TurnedLayer(nn.Module):
    """Attention and MLP, each with its norm before it; the first layer's input is normalised."""

    def __init__(self, config: EncoderConfig, spec: TurnedSpec, layer: int) -> None:
        super().__init__()
        self.attn_norm = nn.Identity() if layer == 0 else norm(config, spec)
        self.attn = TurnedAttention(config, spec, layer)
        self.mlp_norm = norm(config, spec)
        self.mlp = GatedMLP(config, spec)

    def forward(self, x: Tensor, positions: Tensor, lengths: Sequence[int]) -> Tensor:
        x = x + self.attn(self.attn_norm(x), positions, lengths)
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out


class ModernBert(nn.Module):
    """Everything below a head."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        if config.turned is None:
            raise ValueError("the configuration is another encoder's")
        self.config, spec = config, config.turned
        self.embeddings = nn.ModuleDict(
            {
                "tok_embeddings": nn.Embedding(config.vocab_size, config.hidden_size),
                "norm": norm(config, spec),
            }
        )
        self.layers = nn.ModuleList(
            TurnedLayer(config, spec, layer) for layer in range(config.layers)
        )
        self.final_norm = norm(config, spec)

    def forward(
        self, token_ids: Tensor, lengths: Sequence[int], types: Tensor | None = None
    ) -> Tensor:
        """int64 ids [tokens] of texts of these lengths, in a row -> [tokens, hidden].

        It has no `types` of tokens.
        """
        positions = torch.cat([torch.arange(n, device=token_ids.device) for n in lengths])
        x = self.embeddings["norm"](self.embeddings["tok_embeddings"](token_ids))
        for layer in self.layers:
            x = layer(x, positions, lengths)
        out: Tensor = self.final_norm(x)
        return out


def norm(config: EncoderConfig, spec: TurnedSpec) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, config.norm_eps, bias=spec.norm_bias)
