"""Multi-head latent attention (DeepSeek-V2, 2024, arXiv:2405.04434).

Keys and values of all heads come out of one narrow vector of each token, and all heads share the
part of the key that knows positions. With the native kernels these two are what is cached
(`latent_heads`): one key of `rank` + turned features for all heads, whose first `rank` are the
value. Elsewhere, and in training, keys and values are those that the heads see.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from hagane.kernels import cpu
from hagane.kernels.backend import Operations
from hagane.kernels.cpu.served import with_value_of
from hagane.kernels.layout import Scoring
from hagane.models.attention import AttentionContext, Rotation, RowSelection
from hagane.models.config import CacheSpec, ModelConfig, Quantization
from hagane.models.latent_heads import AbsorbedHeads
from hagane.models.linear import make_projection
from hagane.models.norm import Norm
from hagane.models.spec import layer_norms

# That of the published code, whatever the configuration says of other norms.
_EPSILON = 1e-6


class LatentProducts(Protocol):
    """What queries and results are multiplied by over a cache of latents, as `AbsorbedHeads`."""

    @property
    def keys(self) -> nn.Module: ...

    @property
    def values(self) -> nn.Module: ...


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
        if spec.rope is None:
            raise ValueError("latent attention has positions in every layer")
        self.rope, self.turned = spec.rope, spec.rope.rotated
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
        # In training, what serving computes with: values are then those of serving.
        self.served: LatentProducts | None = None

    @property
    def cache(self) -> CacheSpec:
        """Of latents where the kernels read them, or else of each head's keys and values."""
        if isinstance(self.kv_b_proj, AbsorbedHeads):
            return CacheSpec(1, self.latent.rank + self.turned, shared=True)
        return CacheSpec(self.heads, self.head_dim)

    def absorbed(self, matrix: Tensor) -> AbsorbedHeads:
        """What serves in the place of `kv_b_proj`, whose weights are `matrix` [out, in]."""
        return AbsorbedHeads(matrix, self.heads, self.head_dim - self.turned, self.turned)

    def forward(
        self,
        x: Tensor,
        rotation: Rotation,
        context: AttentionContext,
        residual: Tensor | None,
        selection: RowSelection | None = None,
    ) -> Tensor:
        """x [tokens, hidden]; `residual` and the result have the selected rows, if any are."""
        parts = context.linear(self.qkv_proj, x)
        ends = parts.shape[1] - self.latent.rank - self.turned, -self.turned
        q, latent, shared = parts[:, : ends[0]], parts[:, ends[0] : ends[1]], parts[:, ends[1] :]
        if self.q_a_layernorm is not None:
            q = context.linear(self.q_b_proj, self.q_a_layernorm(q))
        made = q, self.kv_a_layernorm(latent), shared
        if isinstance(self.kv_b_proj, AbsorbedHeads):
            own = self._over_latents(self.kv_b_proj, *made, rotation, context, selection)
        else:
            own = self._over_heads(*made, rotation, context, selection)
        if self.served is not None:
            with torch.no_grad():
                value = self._over_latents(self.served, *made, rotation, context, selection)
            own = with_value_of(value, own)
        if selection is not None:
            context = selection.context
        return context.linear(self.o_proj, own, residual)

    def _over_heads(
        self,
        q: Tensor,
        latent: Tensor,
        shared: Tensor,
        rotation: Rotation,
        context: AttentionContext,
        selection: RowSelection | None,
    ) -> Tensor:
        """The heads' results [queries, heads * values], by keys and values of each of them."""
        q, k, v = self.operations.latent_heads(
            q,
            context.linear(self.kv_b_proj, latent),
            shared,
            *rotation,
            heads=self.heads,
            interleaved=self.rope.interleaved,
        )
        if selection is not None:
            q, context = selection.take(q), selection.context
        attended = context.attention(self.layer, q, k, v, self.scoring)
        return self.operations.narrow_heads(attended, self.heads, self.latent.values)

    def _over_latents(
        self,
        products: LatentProducts,
        q: Tensor,
        latent: Tensor,
        shared: Tensor,
        rotation: Rotation,
        context: AttentionContext,
        selection: RowSelection | None,
    ) -> Tensor:
        """As `_over_heads`, by one key for all heads, in which the value is."""
        q, k = cpu.latent_keys(
            q,
            context.linear(products.keys, q),
            latent,
            shared,
            *rotation,
            heads=self.heads,
            interleaved=self.rope.interleaved,
        )
        if selection is not None:
            q, context = selection.take(q), selection.context
        v = k[:, :, : self.latent.rank]
        attended = context.attention(self.layer, q, k, v, self.scoring)
        return context.linear(products.values, attended)
