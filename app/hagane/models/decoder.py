"""The Transformer: one decoder for serving, fine-tuning and pretraining.

embedding -> layers x (x += attention(norm(x)); x += mlp(norm(x))) -> norm -> head, on a flat
ragged batch [tokens, hidden]. Which tokens see which, and whose adapter changes which row, is the
context's business, how weights are stored is the linear layers', and who computes is the
operations'. Module names follow Hugging Face checkpoints, except that query, key and value, and
gate and up, are one fused matrix each: fewer, larger products.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hagane.kernels import Operations, reference
from hagane.models.attention import AttentionContext
from hagane.models.config import ModelConfig, Quantization
from hagane.models.formats.dense import DenseEmbedding
from hagane.models.formats.int8 import Int8Embedding
from hagane.models.formats.layer import Linear
from hagane.models.frozen import Int8TrainingEmbedding
from hagane.models.linear import make_embedding, make_linear
from hagane.models.rope import RotaryEmbedding
from hagane.models.serving import CudaEmbedding, PackedEmbedding
from hagane.models.spec import layer_projections

# Where keys are centered on average: later positions turn slow features a little further.
_CENTERED_POSITIONS = 4096


def _projection(
    config: ModelConfig, layer: int, path: str, quantization: Quantization | None
) -> Linear:
    declared = layer_projections(config)[path]
    return make_linear(
        declared.columns,
        declared.rows,
        bias=declared.bias,
        quantization=quantization,
        eight_bits=quantization is not None and quantization.has_eight_bits(layer, path),
    )


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learned scale."""

    def __init__(self, features: int, eps: float, operations: Operations) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.eps = eps
        self.operations = operations

    def forward(self, x: Tensor) -> Tensor:
        return self.operations.rms_norm(x, self.weight, self.eps)


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
        self.eps = config.rms_norm_eps
        self.layer = layer
        self.head_dim = config.head_dim
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.window = config.sliding_windows[layer] if config.sliding_windows else None
        self.qkv_proj = _projection(config, layer, "self_attn.qkv_proj", quantization)
        self.o_proj = _projection(config, layer, "self_attn.o_proj", quantization)
        # Float32 [kv_heads, head_dim], or None: what is taken off every key (see `center_keys`).
        self.key_center: Tensor | None = None
        self.q_norm: RMSNorm | None = None
        self.k_norm: RMSNorm | None = None
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps, operations)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps, operations)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, context: AttentionContext, residual: Tensor
    ) -> Tensor:
        norms = None
        if self.q_norm is not None and self.k_norm is not None:
            norms = (self.q_norm.weight, self.k_norm.weight)
        q, k, v = self.operations.apply_rope(
            context.linear(self.qkv_proj, x),
            cos,
            sin,
            heads=self.heads,
            kv_heads=self.kv_heads,
            norms=norms,
            eps=self.eps,
            center=self.key_center,
        )
        attended = context.attention(self.layer, q, k, v, self.window)
        return context.linear(self.o_proj, attended, residual)

    def center_keys(self, rotary: RotaryEmbedding) -> None:
        """Take the mean of the rotated key bias off every key, unless a norm follows it.

        The softmax ignores what all keys have in common. Where a bias is large, as in Qwen2.5, it
        lies in features that hardly turn with the position: without it keys need fewer bits
        (SageAttention, Zhang et al., 2024, arXiv:2410.02367, takes off the keys' own mean).
        """
        bias, first, last = self.qkv_proj.bias, self.heads, self.heads + self.kv_heads
        if bias is None or self.k_norm is not None:
            return
        positions = torch.arange(_CENTERED_POSITIONS)
        cos, sin = reference.rope_tables(positions, rotary.inverse_frequencies, rotary.magnitude)
        keys = bias.detach().float().view(-1, self.head_dim)[first:last]
        rotated = reference.apply_rotation(keys.expand(len(positions), -1, -1), cos, sin)
        self.key_center = rotated.mean(0).contiguous()


class MLP(nn.Module):
    """The SwiGLU feed-forward block."""

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        quantization: Quantization | None,
        operations: Operations,
    ) -> None:
        super().__init__()
        self.operations = operations
        self.gate_up_proj = _projection(config, layer, "mlp.gate_up_proj", quantization)
        self.down_proj = _projection(config, layer, "mlp.down_proj", quantization)

    def forward(self, x: Tensor, context: AttentionContext, residual: Tensor) -> Tensor:
        inner = self.operations.silu_and_mul(context.linear(self.gate_up_proj, x))
        return context.linear(self.down_proj, inner, residual)


class DecoderLayer(nn.Module):
    """Attention and MLP, each behind a norm, each adding to the residual stream."""

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        quantization: Quantization | None,
        operations: Operations,
    ) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, operations)
        self.self_attn = Attention(config, layer, quantization, operations)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, operations)
        self.mlp = MLP(config, layer, quantization, operations)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, context: AttentionContext) -> Tensor:
        x = self.self_attn(self.input_layernorm(x), cos, sin, context, residual=x)
        out: Tensor = self.mlp(self.post_attention_layernorm(x), context, residual=x)
        return out


class Decoder(nn.Module):
    """Everything but the head; its own module because checkpoints name it `model.`."""

    def __init__(
        self, config: ModelConfig, quantization: Quantization | None, operations: Operations
    ) -> None:
        super().__init__()
        self.embed_tokens = make_embedding(config.vocab_size, config.hidden_size, quantization)
        self.layers = nn.ModuleList(
            DecoderLayer(config, layer, quantization, operations) for layer in range(config.layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, operations)
        self.rotary = RotaryEmbedding(config.rope, operations)

    def forward(self, token_ids: Tensor, context: AttentionContext) -> Tensor:
        x = self.embed_tokens(token_ids)
        cos, sin = self.rotary(context.positions)
        for layer in self.layers:
            x = layer(x, cos, sin, context)
        normed: Tensor = self.norm(x)
        return normed


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
            self.lm_head = make_embedding(config.vocab_size, config.hidden_size, quantization)

    def forward(self, token_ids: Tensor, context: AttentionContext) -> Tensor:
        """int64 ids [tokens] -> final hidden states [tokens, hidden]."""
        hidden: Tensor = self.model(token_ids, context)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, hidden] -> float32 [n, vocab]. Apart from forward: only some rows need it."""
        scores: Tensor = self.head.logits(hidden)
        return scores

    @property
    def head(
        self,
    ) -> DenseEmbedding | Int8Embedding | Int8TrainingEmbedding | PackedEmbedding | CudaEmbedding:
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
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            writes = name.endswith(("o_proj.weight", "down_proj.weight"))
            parameter.normal_(0.0, 0.02 * (residual if writes else 1.0), generator=generator)


def use_operations(model: Transformer, operations: Operations) -> None:
    """Let a loaded model compute with other operations than it was made with."""
    for module in model.modules():
        if hasattr(module, "operations"):
            module.operations = operations  # type: ignore[assignment]
