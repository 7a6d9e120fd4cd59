"""Multi-head latent attention (DeepSeek-V2, 2024, arXiv:2405.04434).

Keys and values of all heads come out of one narrow vector of each token, and all heads share the
part of the key that knows positions. Keys and values are cached as the heads see them.
"""

from __future__ import annotations

from torch import Tensor, nn

from hagane.kernels.backend import Operations
from hagane.kernels.layout import Scoring
from hagane.models.attention import AttentionContext, Rotation, RowSelection
from hagane.models.config import ModelConfig, Quantization
from hagane.models.linear import make_projection
from hagane.models.norm import Norm
from hagane.models.spec import layer_norms

# That of the published code, whatever the configuration says of other norms.
_EPSILON = 1e-6


class LatentAttention(nn.Module):
    """`qkv_proj` gives queries, or what they are made of, the latent vector and the shared key."""

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        quantization: Quantization | None,
        operations: Operations,
    ) -> None:
        super().__init__()
        if config.latent is None:
            raise ValueError("the configuration declares no latent attention")
        self.operations, self.layer, self.latent = operations, layer, config.latent
        self.heads, self.head_dim = config.heads, config.head_dim
        spec = config.layer_specs[layer]
        self.rope = spec.rope
        self.scoring = Scoring(config.attention_scale or config.head_dim**-0.5, spec.window)

        def projection(name: str) -> nn.Module:
            return make_projection(config, layer, f"self_attn.{name}", quantization)

        norms = layer_norms(config)

        def norm(name: str) -> Norm:
            return Norm(norms[f"self_attn.{name}"], config, operations, eps=_EPSILON)

        self.qkv_proj = projection("qkv_proj")
        self.q_a_layernorm: Norm | None = None
        if self.latent.query_rank:
            self.q_a_layernorm, self.q_b_proj = norm("q_a_layernorm"), projection("q_b_proj")
        self.kv_a_layernorm, self.kv_b_proj = norm("kv_a_layernorm"), projection("kv_b_proj")
        self.o_proj = projection("o_proj")

    def forward(
        self,
        x: Tensor,
        rotation: Rotation,
        context: AttentionContext,
        residual: Tensor | None,
        selection: RowSelection | None = None,
    ) -> Tensor:
        """x [tokens, hidden]; `residual` and the result have the selected rows, if any are."""
        cos, sin = rotation
        if cos is None or sin is None or self.rope is None:
            raise ValueError("latent attention has positions in every layer")
        parts = context.linear(self.qkv_proj, x)
        ends = parts.shape[1] - self.latent.rank - self.rope.rotated, -self.rope.rotated
        q, latent, shared = parts[:, : ends[0]], parts[:, ends[0] : ends[1]], parts[:, ends[1] :]
        if self.q_a_layernorm is not None:
            q = context.linear(self.q_b_proj, self.q_a_layernorm(q))
        kv = context.linear(self.kv_b_proj, self.kv_a_layernorm(latent))
        q, k, v = self.operations.latent_heads(
            q, kv, shared, cos, sin, heads=self.heads, interleaved=self.rope.interleaved
        )
        if selection is not None:
            q, context = selection.take(q), selection.context
        attended = context.attention(self.layer, q, k, v, self.scoring)
        own = self.operations.narrow_heads(attended, self.heads, self.latent.values)
        return context.linear(self.o_proj, own, residual)
