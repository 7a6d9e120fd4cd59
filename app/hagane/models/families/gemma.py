"""Gemma 1 to 3 (text), Google, 2024 and 2025, arXiv:2403.08295, 2408.00118 and 2503.19786.

Norms add 1 to their weights, embeddings are scaled. Gemma 2 normalises what blocks add, too, and
caps scores and logits; Gemma 3 normalises queries and keys instead, and turns windowed layers by a
base of their own.
"""

from __future__ import annotations

import math
from dataclasses import replace

from hagane.models.config import ModelConfig
from hagane.models.families.keys import Found, Keys, Positive, Size
from hagane.models.families.llama import base

# By ours: Llama's "post_attention" norm is the one before the MLP.
_NAMES = {
    "post_attention_layernorm": "pre_feedforward_layernorm",
    "attention_output_norm": "post_attention_layernorm",
    "mlp_output_norm": "post_feedforward_layernorm",
}


class GemmaKeys(Keys, frozen=True):
    head_dim: Size | None = 256
    hidden_activation: str | None = "gelu_pytorch_tanh"
    tie_word_embeddings: bool | None = True


def gemma(found: Found[GemmaKeys]) -> ModelConfig:
    biased = bool(found.keys.attention_bias)
    return replace(
        base(found),
        norm_offset=1.0,
        embedding_scale=math.sqrt(found.keys.hidden_size),
        # The first files say "gelu" and mean its approximation.
        activation="gelu_tanh",
        qkv_bias=biased,
        output_bias=biased,
    )


class Gemma2Keys(GemmaKeys, frozen=True):
    query_pre_attn_scalar: Positive = 256.0
    sliding_window: Size | None = 4096
    attn_logit_softcapping: Positive | None = 50.0
    final_logit_softcapping: Positive | None = 30.0


def gemma2(found: Found[Gemma2Keys]) -> ModelConfig:
    config, keys = gemma(found), found.keys
    return replace(
        config,
        norms="around",
        names=_NAMES,
        attention_scale=keys.query_pre_attn_scalar**-0.5,
        attention_cap=keys.attn_logit_softcapping or 0.0,
        logit_cap=keys.final_logit_softcapping or 0.0,
        layer_specs=found.layers(found.kinds(period=2), config.rope, config.rope),
    )


class Gemma3Keys(Gemma2Keys, frozen=True):
    attn_logit_softcapping: Positive | None = None
    final_logit_softcapping: Positive | None = None
    sliding_window_pattern: Size = 6
    rope_local_base_freq: Positive = 10000.0


def gemma3(found: Found[Gemma3Keys]) -> ModelConfig:
    keys = found.keys
    full = found.rope("full_attention", theta=1e6)
    # Scaling and base of old files are those of the layers without a window.
    nested = "sliding_attention" in (found.raw.get("rope_parameters") or {})
    local = replace(found, raw=found.raw if nested else {"rope_theta": keys.rope_local_base_freq})
    kinds = found.kinds(period=keys.sliding_window_pattern)
    return replace(
        gemma2(replace(found, raw={**found.raw, "rope_parameters": None, "rope_scaling": None})),
        rope=full,
        layer_specs=found.layers(kinds, full, local.rope("sliding_attention")),
        qk_norm="head",
        # transformers reads the key and caps nothing.
        attention_cap=0.0,
        raw=found.raw,
    )
