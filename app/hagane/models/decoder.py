"""The Transformer: one decoder for serving, fine-tuning and pretraining.

embedding -> layers x (x += attention(norm(x)); x += mlp(norm(x))) -> norm -> head, on a flat
ragged batch [tokens, hidden]; other families put their norms elsewhere (`ModelConfig`). Which
tokens see which, and whose adapter changes which row, is the context's business, how weights are
stored is the linear layers', and who computes is the operations'. Module names follow Hugging Face
checkpoints of Llama, except that query, key and value, and gate and up, are one fused matrix each:
fewer, larger products.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from hagane.kernels import reference
from hagane.kernels.backend import Operations
from hagane.kernels.layout import Scoring
from hagane.models.attention import AttentionContext, Rotation, RowSelection, Sinks
from hagane.models.computed import computed
from hagane.models.config import CacheSpec, ModelConfig, Quantization, Temperature
from hagane.models.formats.dense import DenseEmbedding
from hagane.models.formats.int8 import Int8Embedding
from hagane.models.frozen import TrainingEmbedding
from hagane.models.latent import LatentAttention
from hagane.models.linear import make_embedding, make_projection
from hagane.models.mlp import MLP
from hagane.models.moe import MixtureOfExperts
from hagane.models.norm import Norm
from hagane.models.rope import RotaryEmbedding, mean_rotation
from hagane.models.rope_parameters import RopeParameters
from hagane.models.serving_layers import CudaEmbedding, PackedEmbedding
from hagane.models.spec import layer_norms


class Attention(nn.Module):
    """Grouped-query attention with rotary positions (Ainslie et al., 2023, arXiv:2305.13245)."""

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        quantization: Quantization | None,
        operations: Operations,
    ) -> None:
        super().__init__()
        self.operations = operations
        self.eps, self.offset = config.norm_eps, config.norm_offset
        self.layer = layer
        self.head_dim = config.head_dim
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.cache = CacheSpec(config.kv_heads, config.head_dim)
        spec = config.layer_specs[layer]
        self.scoring = Scoring(
            config.attention_scale or config.head_dim**-0.5, spec.window, config.attention_cap
        )
        self.rope, self.temperature, self.clip = spec.rope, spec.temperature, config.qkv_clip
        self.sinks = Sinks(config.heads) if config.sinks else None
        self.qkv_proj = make_projection(config, layer, "self_attn.qkv_proj", quantization)
        self.o_proj = make_projection(config, layer, "self_attn.o_proj", quantization)
        # Float32 [kv_heads, head_dim], or None: what is taken off every key (see `center_keys`).
        self.key_center: Tensor | None = None
        self.q_norm: Norm | None = None
        self.k_norm: Norm | None = None
        self.turned_norms = config.qk_norm == "turned"
        if config.qk_norm == "unit" and spec.rope is not None:
            # The length of what is turned stays: it may be normalised before.
            bare = replace(config, norm_weights=False)
            self.q_norm, self.k_norm = (Norm(self.head_dim, bare, operations) for _ in range(2))
        elif config.qk_norm and config.qk_norm != "unit":
            norms = layer_norms(config)
            self.q_norm = Norm(norms["self_attn.q_norm"], config, operations)
            self.k_norm = Norm(norms["self_attn.k_norm"], config, operations)

    def forward(
        self,
        x: Tensor,
        rotation: Rotation,
        context: AttentionContext,
        residual: Tensor | None,
        selection: RowSelection | None = None,
    ) -> Tensor:
        """x [tokens, hidden]; `residual` and the result have the selected rows, if any are."""
        q, k, v = self._heads(context.linear(self.qkv_proj, x), rotation)
        if self.temperature is not None:
            tempered = partial(_tempered, self.temperature)
            q = computed(self.operations, tempered, q, context.positions)
        if selection is not None:
            q, context = selection.take(q), selection.context
        scoring = self.scoring if self.sinks is None else self.sinks.score(self.scoring)
        attended = context.attention(self.layer, q, k, v, scoring)
        return context.linear(self.o_proj, attended, residual)

    def _heads(self, qkv: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [tokens, heads, head_dim], normalised and turned."""
        if self.clip:
            qkv = computed(
                self.operations, partial(torch.clamp, min=-self.clip, max=self.clip), qkv
            )
        norms = None
        if self.q_norm is not None and self.k_norm is not None and not self.turned_norms:
            norms = (self.q_norm.weight, self.k_norm.weight)
        q, k, v = self.operations.apply_rope(
            qkv,
            *rotation,
            heads=self.heads,
            kv_heads=self.kv_heads,
            norms=norms,
            eps=self.eps,
            center=self.key_center,
            offset=self.offset,
            interleaved=self.rope is not None and self.rope.interleaved,
        )
        if self.turned_norms and self.q_norm is not None and self.k_norm is not None:
            q = computed(self.operations, self.q_norm.by_head, q)
            k = computed(self.operations, self.k_norm.by_head, k)
        return q, k, v

    def center_keys(self) -> None:
        """Take the mean of the rotated key bias off every key, unless a norm follows it.

        The softmax ignores what all keys have in common. Where a bias is large, as in Qwen2.5, it
        lies in features that hardly turn with the position: without it keys need fewer bits
        (SageAttention, Zhang et al., 2024, arXiv:2410.02367, takes off the keys' own mean).
        """
        bias, first, last = self.qkv_proj.bias, self.heads, self.heads + self.kv_heads
        shifts = self.sinks is not None or self.scoring.cap  # what all keys share then counts
        if bias is None or self.k_norm is not None or self.clip or self.rope is None or shifts:
            return
        keys = bias.detach().float().view(-1, self.head_dim)[first:last]
        # Turning is linear: the mean of what is turned is turned by the mean.
        mean = reference.apply_rotation(
            keys[None], *mean_rotation(self.rope), interleaved=self.rope.interleaved
        )
        self.key_center = mean[0].contiguous()


def _tempered(temperature: Temperature, q: Tensor, positions: Tensor) -> Tensor:
    """q [tokens, heads, head_dim] at int64 positions [tokens]."""
    steps = torch.floor((positions.float() + 1) / temperature.floor)
    return q * (torch.log1p(steps) * temperature.scale + 1)[:, None, None]


class DecoderLayer(nn.Module):
    """Attention and MLP, each adding to the residual stream; norms are where the family has them.

    Products add to the stream themselves, unless what they give is normalised or scaled first.
    """

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        quantization: Quantization | None,
        operations: Operations,
    ) -> None:
        super().__init__()
        self.operations = operations
        attention = Attention if config.latent is None else LatentAttention
        self.self_attn = attention(config, layer, quantization, operations)
        mixture = config.layer_specs[layer].experts
        self.mlp = (
            MLP(config, layer, "mlp", quantization, operations)
            if mixture is None
            else MixtureOfExperts(config, layer, mixture, quantization, operations)
        )
        norms = layer_norms(config)

        def norm(name: str) -> Norm | None:
            if name not in norms:
                return None
            return Norm(norms[name], config, operations, bias=config.norm_bias)

        self.input_layernorm = norm("input_layernorm")
        self.attention_output_norm = norm("attention_output_norm")
        self.post_attention_layernorm = norm("post_attention_layernorm")
        self.mlp_output_norm = norm("mlp_output_norm")
        self.parallel = config.norms in ("parallel", "shared")
        self.scale = config.residual_scale
        self.fused = self.scale == 1.0 and config.norms not in ("after", "around")

    def forward(
        self,
        x: Tensor,
        rotation: Rotation,
        context: AttentionContext,
        selection: RowSelection | None = None,
    ) -> Tensor:
        """x [tokens, hidden] -> the same, or [selected rows, hidden]."""
        normed = x if self.input_layernorm is None else self.input_layernorm(x)
        if selection is not None:
            x = selection.take(x)
        out = self.self_attn(normed, rotation, context, x if self.fused else None, selection)
        if not self.fused:
            out = self._add(x, out, self.attention_output_norm)
        inner = out
        if self.parallel and self.post_attention_layernorm is not None:
            inner = x
        elif self.parallel:
            inner = normed if selection is None else selection.take(normed)
        if selection is not None:
            context = selection.context
        if self.post_attention_layernorm is not None:
            inner = self.post_attention_layernorm(inner)
        added = self.mlp(inner, context, out if self.fused else None)
        return added if self.fused else self._add(out, added, self.mlp_output_norm)

    def _add(self, x: Tensor, out: Tensor, norm: Norm | None) -> Tensor:
        """x + what a block gives."""
        if norm is None:
            return self.operations.scaled_add(out, self.scale, x)
        added: Tensor = norm(out, x)
        return added


class Decoder(nn.Module):
    """Everything but the head; its own module because checkpoints name it `model.`."""

    def __init__(
        self, config: ModelConfig, quantization: Quantization | None, operations: Operations
    ) -> None:
        super().__init__()
        self.operations = operations
        self.embed_tokens = make_embedding(config.vocab_size, config.hidden_size, quantization)
        self.embed_positions: DenseEmbedding | None = None
        if config.position_embeddings:
            self.embed_positions = DenseEmbedding(
                config.max_position_embeddings, config.hidden_size
            )
        self.layers = nn.ModuleList(
            DecoderLayer(config, layer, quantization, operations) for layer in range(config.layers)
        )
        self.norm = Norm(config.hidden_size, config, operations, bias=config.norm_bias)
        self.embedding_scale = config.embedding_scale
        # One table for each kind of rotation, of which most models have one.
        self.ropes = tuple(dict.fromkeys(spec.rope for spec in config.layer_specs if spec.rope))
        self.rotaries = nn.ModuleList(RotaryEmbedding(rope, operations) for rope in self.ropes)

    def forward(
        self,
        token_ids: Tensor,
        context: AttentionContext,
        selection: RowSelection | None = None,
        embedded: Tensor | None = None,
    ) -> Tensor:
        x = self.embed(token_ids, embedded)
        if self.embed_positions is not None:
            x = self.operations.scaled_add(self.embed_positions(context.positions), 1.0, x)
        rotations = self.rotations(context.positions)
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            rotation = rotations[layer.self_attn.rope]  # type: ignore[union-attr,index]
            x = layer(x, rotation, context, selection if number == last else None)
        normed: Tensor = self.norm(x)
        return normed

    def embed(self, token_ids: Tensor, embedded: Tensor | None = None) -> Tensor:
        """int64 ids [tokens] -> [tokens, hidden]; `embedded` are rows that were looked up."""
        x: Tensor = self.embed_tokens(token_ids) if embedded is None else embedded
        return (
            x
            if self.embedding_scale == 1.0
            else self.operations.scaled_add(x, self.embedding_scale)
        )

    def rotations(self, positions: Tensor) -> dict[RopeParameters | None, Rotation]:
        """Cosines and sines at int64 positions [tokens], by the rope of the layers."""
        found: dict[RopeParameters | None, Rotation] = {None: (None, None)}
        for rope, rotary in zip(self.ropes, self.rotaries, strict=True):
            found[rope] = rotary(positions)
        return found


class Transformer(nn.Module):
    """A decoder-only language model (Vaswani et al., 2017, arXiv:1706.03762)."""

    def __init__(
        self,
        config: ModelConfig,
        quantization: Quantization | None = None,
        operations: Operations = reference,
    ) -> None:
        super().__init__()
        self.config = config
        self.operations = operations
        self.model = Decoder(config, quantization, operations)
        # A tied head is the embedding itself; registering it twice would double its parameters.
        if not config.tie_word_embeddings:
            self.lm_head = make_embedding(
                config.vocab_size, config.hidden_size, quantization, bias=config.head_bias
            )

    def forward(
        self,
        token_ids: Tensor,
        context: AttentionContext,
        selection: RowSelection | None = None,
        embedded: Tensor | None = None,
    ) -> Tensor:
        """int64 ids [tokens] -> final hidden states [tokens or selected rows, hidden].

        `embedded` [tokens, hidden] stand in place of the embedding's own rows of `token_ids`.
        """
        hidden: Tensor = self.model(token_ids, context, selection, embedded)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, hidden] -> float32 [n, vocab]. Apart from forward: only some rows need it."""
        scores: Tensor = self.head.logits(hidden)
        scale, cap = self.config.logit_scale, self.config.logit_cap
        if cap or scale != 1.0:
            scores = self.operations.softcap(scores, scale, cap)
        return scores

    @property
    def caches(self) -> tuple[CacheSpec, ...]:
        """The shape of each layer's KV cache."""
        return tuple(layer.self_attn.cache for layer in self.model.layers)  # type: ignore[union-attr,misc]

    @property
    def head(
        self,
    ) -> DenseEmbedding | Int8Embedding | TrainingEmbedding | PackedEmbedding | CudaEmbedding:
        """The embedding that scores the vocabulary."""
        return self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Normal(0, 0.02); matrices that write to the residual stream scaled by 1/sqrt(2 layers).

        Radford et al., 2019 (GPT-2). Biases become 0 and norms 1.
        """
        residual = (2 * self.config.layers) ** -0.5
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                one = 1.0 - self.config.norm_offset
                parameter.fill_(0.0 if name.endswith("bias") else one)
                continue
            writes = name.endswith(("o_proj.weight", "down_proj.weight"))
            parameter.normal_(0.0, 0.02 * (residual if writes else 1.0), generator=generator)


def use_operations(model: Transformer, operations: Operations) -> None:
    """Let a loaded model compute with other operations than it was made with."""
    for module in model.modules():
        if hasattr(module, "operations"):
            module.operations = operations  # type: ignore[assignment]
