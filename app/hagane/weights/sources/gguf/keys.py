"""The keys of `config.json` that only some of GGUF's architectures have."""

from __future__ import annotations

from typing import Any

import numpy as np

from hagane.weights.sources.gguf import mixtures
from hagane.weights.sources.gguf.metadata import Metadata


def llama(metadata: Metadata) -> dict[str, Any]:
    return {
        "attention_bias": metadata.has("blk.0.attn_q.bias"),
        "mlp_bias": metadata.has("blk.0.ffn_down.bias"),
    }


def gemma(metadata: Metadata) -> dict[str, Any]:
    return {"hidden_act": None, "hidden_activation": "gelu_pytorch_tanh"}


def gemma2(metadata: Metadata) -> dict[str, Any]:
    layers = metadata.layers()
    # Only the 27B model scales queries by something else than a head's size.
    scalar = 144 if layers == 46 else metadata.integer("attention.key_length")
    return {
        **gemma(metadata),
        "sliding_window": metadata.integer("attention.sliding_window", 4096),
        "query_pre_attn_scalar": scalar,
        "attn_logit_softcapping": metadata.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": metadata.number("final_logit_softcapping", 30.0),
    }


def gemma3(metadata: Metadata) -> dict[str, Any]:
    layers = metadata.layers()
    # Five layers with a window, then one without.
    kinds = ["sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(layers)]
    return {
        **gemma(metadata),
        "model_type": "gemma3_text",
        "sliding_window": metadata.integer("attention.sliding_window"),
        "layer_types": kinds,
        # Only the 27B model scales queries by something else than a head's size.
        "query_pre_attn_scalar": 168 if layers == 62 else metadata.integer("attention.key_length"),
        "rope_local_base_freq": metadata.number("rope.freq_base_swa", 10000.0),
        "rope_theta": metadata.number("rope.freq_base", 1e6),
    }


def phi3(metadata: Metadata) -> dict[str, Any]:
    window = metadata.get("attention.sliding_window")
    # 0 or the context's length is none.
    context = metadata.integer("context_length")
    return {"sliding_window": window if window and window < context else None}


def granite(metadata: Metadata) -> dict[str, Any]:
    return {
        **llama(metadata),
        "embedding_multiplier": metadata.number("embedding_scale", 1.0),
        "attention_multiplier": metadata.number("attention.scale", 1.0),
        "residual_multiplier": metadata.number("residual_scale", 1.0),
        "logits_scaling": metadata.number("logit_scale", 1.0),
    }


def glm4(metadata: Metadata) -> dict[str, Any]:
    return {"attention_bias": metadata.has("blk.0.attn_q.bias")}


def starcoder2(metadata: Metadata) -> dict[str, Any]:
    return {
        "hidden_act": "gelu_pytorch_tanh",
        "norm_epsilon": metadata.number("attention.layer_norm_epsilon"),
        "use_bias": metadata.has("blk.0.attn_q.bias"),
    }


def stablelm(metadata: Metadata) -> dict[str, Any]:
    return {
        "layer_norm_eps": metadata.number("attention.layer_norm_epsilon"),
        "use_qkv_bias": metadata.has("blk.0.attn_q.bias"),
        "qk_layernorm": metadata.has("blk.0.attn_q_norm.weight"),
        "use_parallel_residual": not metadata.has("blk.0.ffn_norm.weight"),
    }


def seed(metadata: Metadata) -> dict[str, Any]:
    return {
        "attention_bias": metadata.has("blk.0.attn_q.bias"),
        "attention_out_bias": metadata.has("blk.0.attn_output.bias"),
    }


def exaone4(metadata: Metadata) -> dict[str, Any]:
    window = metadata.count("attention.sliding_window")
    if not window:
        return {"sliding_window": None}
    layers, every = metadata.layers(), metadata.get("attention.sliding_window_pattern")
    # A list of all layers, or three of four.
    windowed = every if isinstance(every, np.ndarray) else [(i + 1) % 4 for i in range(layers)]
    kinds = ["sliding_attention" if one else "full_attention" for one in windowed]
    return {"sliding_window": window, "layer_types": kinds}


def olmo(metadata: Metadata) -> dict[str, Any]:
    bounded = metadata.get("attention.clamp_kqv") is not None
    return {"clip_qkv": metadata.number("attention.clamp_kqv") if bounded else None}


def olmo2(metadata: Metadata) -> dict[str, Any]:
    """OLMo 2, or OLMo 3, which has windows."""
    if not metadata.count("attention.sliding_window"):
        return {}
    return {"architectures": ["Olmo3ForCausalLM"], **exaone4(metadata)}


def gpt2(metadata: Metadata) -> dict[str, Any]:
    return {
        "n_embd": metadata.integer("embedding_length"),
        "n_layer": metadata.layers(),
        "n_head": metadata.integer("attention.head_count"),
        "n_inner": metadata.integer("feed_forward_length"),
        "n_positions": metadata.integer("context_length"),
        "layer_norm_epsilon": metadata.number("attention.layer_norm_epsilon"),
    }


def neox(metadata: Metadata) -> dict[str, Any]:
    return {
        "layer_norm_eps": metadata.number("attention.layer_norm_epsilon"),
        "attention_bias": metadata.has("blk.0.attn_qkv.bias"),
        "use_parallel_residual": metadata.flag("use_parallel_residual"),
    }


def granite_moe(metadata: Metadata) -> dict[str, Any]:
    return {**granite(metadata), **mixtures.granite_moe(metadata)}


def ernie(metadata: Metadata) -> dict[str, Any]:
    return {"use_bias": metadata.has("blk.0.attn_q.bias")}


def mixtral(metadata: Metadata) -> dict[str, Any]:
    return llama(metadata) if metadata.get("expert_count") is None else mixtures.experts(metadata)
