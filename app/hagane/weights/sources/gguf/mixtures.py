"""The configurations of mixtures of experts, and of latent attention, in GGUF files."""

from __future__ import annotations

from typing import Any

from hagane.weights.sources.gguf.metadata import Metadata

# `expert_gating_func`: of a score for each expert, or of scores that sum to 1.
_SIGMOID = 2


def experts(metadata: Metadata) -> dict[str, Any]:
    """The keys of a mixture, under the names that families have for them."""
    count = metadata.integer("expert_count")
    inner = metadata.integer("expert_feed_forward_length", metadata.integer("feed_forward_length"))
    return {
        "num_experts": count,
        "num_local_experts": count,
        "n_routed_experts": count,
        "num_experts_per_tok": metadata.integer("expert_used_count"),
        "moe_intermediate_size": inner,
        "norm_topk_prob": False,
    }


def qwen2_moe(metadata: Metadata) -> dict[str, Any]:
    shared = metadata.rows("blk.0.ffn_up_shexp.weight")
    return {**experts(metadata), "shared_expert_intermediate_size": shared}


def qwen3_moe(metadata: Metadata) -> dict[str, Any]:
    return {**experts(metadata), "norm_topk_prob": True}


def phimoe(metadata: Metadata) -> dict[str, Any]:
    """One scale of cosines and sines is stored, that of short and long contexts."""
    found = {
        **experts(metadata),
        "attention_bias": metadata.has("blk.0.attn_q.bias"),
        "lm_head_bias": metadata.has("output.bias"),
        "sliding_window": None,
    }
    if metadata.has("rope_factors_long.weight"):
        magnitude = metadata.number("rope.scaling.attn_factor", 1.0)
        found["rope_scaling"] = {
            **metadata.longrope(metadata.integer("rope.dimension_count")),
            "short_mscale": magnitude,
            "long_mscale": magnitude,
        }
    return found


def gpt_oss(metadata: Metadata) -> dict[str, Any]:
    layers = metadata.layers()
    kinds = ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)]
    return {
        **experts(metadata),
        "intermediate_size": metadata.integer("expert_feed_forward_length"),
        "sliding_window": metadata.integer("attention.sliding_window", 128),
        "layer_types": kinds,
        "attention_bias": metadata.has("blk.0.attn_q.bias"),
        **_yarn(metadata, truncate=False),
    }


def granite_moe(metadata: Metadata) -> dict[str, Any]:
    shared = "blk.0.ffn_up_shexp.weight"
    if not metadata.has(shared):
        return experts(metadata)
    return {
        **experts(metadata),
        "architectures": ["GraniteMoeSharedForCausalLM"],
        "shared_intermediate_size": metadata.rows(shared),
    }


def llama4(metadata: Metadata) -> dict[str, Any]:
    layers, step = metadata.layers(), metadata.integer("interleave_moe_layer_step", 1)
    return {
        **experts(metadata),
        "intermediate_size_mlp": metadata.integer("feed_forward_length"),
        "intermediate_size": metadata.integer("expert_feed_forward_length"),
        "moe_layers": list(range(step - 1, layers, step)),
        # The one with 128 experts has none.
        "use_qk_norm": metadata.integer("expert_count") != 128,
    }


def glm4_moe(metadata: Metadata) -> dict[str, Any]:
    return {
        **_leading(metadata),
        **_groups(metadata),
        "attention_bias": metadata.has("blk.0.attn_q.bias"),
        "use_qk_norm": metadata.has("blk.0.attn_q_norm.weight"),
        "norm_topk_prob": metadata.flag("expert_weights_norm"),
    }


def ernie_moe(metadata: Metadata) -> dict[str, Any]:
    start = metadata.count("leading_dense_block_count")
    inner = metadata.integer("expert_feed_forward_length")
    shared = f"blk.{start}.ffn_up_shexp.weight"
    return {
        "moe_num_experts": metadata.integer("expert_count"),
        "moe_k": metadata.integer("expert_used_count"),
        "moe_intermediate_size": inner,
        "moe_layer_start_index": start,
        "moe_layer_interval": metadata.integer("interleave_moe_layer_step", 1),
        "moe_num_shared_experts": metadata.rows(shared) // inner if metadata.has(shared) else 0,
        "use_bias": False,
    }


def deepseek2(metadata: Metadata) -> dict[str, Any]:
    """DeepSeek V2 and V3, which differ in how experts are scored."""
    rank, turned = (
        metadata.integer("attention.kv_lora_rank"),
        metadata.integer("rope.dimension_count"),
    )
    latent = {
        "kv_lora_rank": rank,
        "q_lora_rank": metadata.count("attention.q_lora_rank") or None,
        "qk_rope_head_dim": turned,
        "qk_nope_head_dim": _latent(metadata, "key_length") - turned,
        "v_head_dim": _latent(metadata, "value_length"),
        "num_key_value_heads": metadata.integer("attention.head_count"),
        "head_dim": turned,
        "partial_rotary_factor": 1.0,
        **_yarn(metadata),
    }
    if metadata.get("expert_count") is None:
        return latent | {"n_routed_experts": None}
    last = f"blk.{metadata.layers() - 1}.exp_probs_b.bias"
    # Older files do not say how; V3 alone corrects scores.
    sigmoid = metadata.count("expert_gating_func") == _SIGMOID or metadata.has(last)
    return {
        **latent,
        **_leading(metadata),
        "architectures": ["DeepseekV3ForCausalLM" if sigmoid else "DeepseekV2ForCausalLM"],
        "norm_topk_prob": metadata.flag("expert_weights_norm"),
        "topk_method": "greedy",
        **_groups(metadata),
    }


def _latent(metadata: Metadata, key: str) -> int:
    """Features of a head; in older files the plain key counts them."""
    plain = metadata.integer(f"attention.{key}")
    return metadata.integer(f"attention.{key}_mla", plain)


def _groups(metadata: Metadata) -> dict[str, Any]:
    if metadata.get("expert_group_count") is None:
        return {"n_group": 1, "topk_group": 1}
    return {
        "topk_method": "group_limited_greedy",
        "n_group": metadata.integer("expert_group_count"),
        "topk_group": metadata.integer("expert_group_used_count"),
    }


def _yarn(metadata: Metadata, **others: Any) -> dict[str, Any]:
    """The scaling, whose temperature files store as a tenth of `mscale_all_dim`."""
    if metadata.get("rope.scaling.type") != "yarn":
        return {}
    multiplier = "rope.scaling.yarn_log_multiplier"
    scale = {}
    if metadata.get(multiplier) is not None:
        scale = dict.fromkeys(("mscale", "mscale_all_dim"), metadata.number(multiplier) * 10)
    return {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": metadata.number("rope.scaling.factor"),
            "original_max_position_embeddings": metadata.integer(
                "rope.scaling.original_context_length"
            ),
            **scale,
            **others,
        }
    }


def _leading(metadata: Metadata) -> dict[str, Any]:
    """Experts after so many layers without, and some that all tokens have."""
    return {
        **experts(metadata),
        "first_k_dense_replace": metadata.count("leading_dense_block_count"),
        "n_shared_experts": metadata.count("expert_shared_count"),
        "routed_scaling_factor": metadata.number("expert_weights_scale", 1.0),
    }
