"""DeepSeek V2 (2024, arXiv:2405.04434) and V3 (2024, arXiv:2412.19437): latent attention, experts.

V3 scores experts by sigmoids and corrects the choice; V2 has groups with one best expert each.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from hagane.models.config import ExpertsSpec, LatentSpec, ModelConfig, Routing
from hagane.models.families.keys import Epsilon, Found, Keys, Positive, Size
from hagane.models.families.llama import base
from hagane.models.families.mixture import Experts, mixed


class DeepseekKeys(Keys, frozen=True):
    """`n_group` and `topk_group` None are no groups, `q_lora_rank` None is no latent query."""

    rms_norm_eps: Epsilon = 1e-6
    kv_lora_rank: Size = 512
    q_lora_rank: Size | None = 1536
    qk_nope_head_dim: Size = 128
    qk_rope_head_dim: Size = 64
    v_head_dim: Size = 128
    n_routed_experts: Experts | None = None
    n_shared_experts: Annotated[int, Meta(ge=0, le=4096)] | None = None
    num_experts_per_tok: Experts | None = None
    moe_intermediate_size: Size = 1407
    routed_scaling_factor: Positive = 1.0
    norm_topk_prob: bool | None = False
    n_group: Experts | None = None
    topk_group: Experts | None = None
    scoring_func: str | None = None
    topk_method: Literal["greedy", "group_limited_greedy", "noaux_tc"] | None = "greedy"
    first_k_dense_replace: int = 0
    moe_layer_freq: int = 1
    rope_interleave: bool | None = True


class DeepseekV3Keys(DeepseekKeys, frozen=True):
    moe_intermediate_size: Size = 2048
    norm_topk_prob: bool | None = True
    n_routed_experts: Experts | None = 256
    n_shared_experts: Annotated[int, Meta(ge=0, le=4096)] | None = 1
    num_experts_per_tok: Experts | None = 8
    n_group: Experts | None = 8
    topk_group: Experts | None = 4
    first_k_dense_replace: int = 3
    routed_scaling_factor: Positive = 2.5


def deepseek_v2(found: Found[DeepseekKeys]) -> ModelConfig:
    keys = found.keys
    if keys.norm_topk_prob:
        raise found.error("norm_topk_prob", "true is not supported")
    grouped = keys.topk_method == "group_limited_greedy"
    routing = Routing(
        keys.num_experts_per_tok or 1,
        normalised=False,
        scale=keys.routed_scaling_factor,
        groups=(keys.n_group or 1) if grouped else 1,
        chosen_groups=(keys.topk_group or 1) if grouped else 1,
        group_best=1,
    )
    return _with_experts(found, msgspec.structs.replace(keys, rope_interleave=True), routing)


def deepseek_v3(found: Found[DeepseekV3Keys]) -> ModelConfig:
    keys = found.keys
    routing = Routing(
        keys.num_experts_per_tok or 1,
        "sigmoid",
        bool(keys.norm_topk_prob),
        scale=keys.routed_scaling_factor,
        groups=keys.n_group or 1,
        chosen_groups=keys.topk_group or 1,
    )
    return _with_experts(found, keys, routing)


def _with_experts(found: Found[DeepseekKeys], keys: DeepseekKeys, routing: Routing) -> ModelConfig:
    config = _latent(found, keys)
    if keys.n_routed_experts is None:
        return config
    if keys.scoring_func not in (None, routing.score):
        raise found.error("scoring_func", f"is {keys.scoring_func!r}; supported is {routing.score}")
    if keys.moe_layer_freq != 1:
        raise found.error("moe_layer_freq", f"{keys.moe_layer_freq} is not supported")
    experts = ExpertsSpec(
        keys.n_routed_experts,
        keys.moe_intermediate_size,
        routing,
        (keys.n_shared_experts or 0) * keys.moe_intermediate_size,
        corrected=routing.score == "sigmoid",
    )
    return mixed(found, config, experts, lambda layer: layer >= keys.first_k_dense_replace)


def _latent(found: Found[DeepseekKeys], keys: DeepseekKeys) -> ModelConfig:
    """The block with dense layers."""
    for key in ("attention_bias", "mlp_bias"):
        if getattr(keys, key):
            raise found.error(key, "true is not supported")
    turned = keys.qk_rope_head_dim
    head_dim = keys.qk_nope_head_dim + turned
    if keys.v_head_dim > head_dim:
        raise found.error("v_head_dim", f"{keys.v_head_dim} is more than a key has: {head_dim}")
    # The rotation knows its part of the heads alone.
    own = msgspec.structs.replace(keys, head_dim=turned, num_key_value_heads=None)
    config = base(replace(found, keys=own))
    rope = replace(config.rope, interleaved=bool(keys.rope_interleave))
    return replace(
        config,
        rope=rope,
        layer_specs=tuple(replace(spec, rope=rope) for spec in config.layer_specs),
        head_dim=head_dim,
        latent=LatentSpec(keys.kv_lora_rank, keys.q_lora_rank or 0, keys.v_head_dim),
        attention_scale=head_dim**-0.5 * rope.score_factor(),
        # The layer that guesses a further token.
        unused=(f"model.layers.{keys.num_hidden_layers}.",),
    )
