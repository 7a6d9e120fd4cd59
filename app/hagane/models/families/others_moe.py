"""Families that are a known block with a mixture of experts."""

from __future__ import annotations

from dataclasses import replace

from hagane.models.config import ExpertNames, ExpertsSpec, ModelConfig, Routing
from hagane.models.families.glm import GlmKeys
from hagane.models.families.granite import GraniteKeys, granite
from hagane.models.families.keys import Epsilon, Found, Keys, Positive, Size
from hagane.models.families.llama import base
from hagane.models.families.mixture import Experts, mixed
from hagane.models.families.others import ErnieKeys, ernie

_GRANITE = ExpertNames(
    router="block_sparse_moe.router.layer",
    experts=(
        "block_sparse_moe.input_linear.{}",
        "block_sparse_moe.input_linear.{}",
        "block_sparse_moe.output_linear.{}",
    ),
    shared=("shared_mlp.input_linear", "shared_mlp.input_linear", "shared_mlp.output_linear"),
    stacked=True,
)
_ERNIE = ExpertNames(correction="mlp.moe_statics.e_score_correction_bias", correction_dims=2)


class OlmoeKeys(Keys, frozen=True):
    rms_norm_eps: Epsilon = 1e-5
    num_experts_per_tok: Experts = 8
    num_experts: Experts = 64
    norm_topk_prob: bool | None = False
    clip_qkv: Positive | None = None


def olmoe(found: Found[OlmoeKeys]) -> ModelConfig:
    """OLMoE (Ai2, 2024, arXiv:2409.02060): queries and keys are normalised over all heads."""
    keys = found.keys
    if keys.clip_qkv is not None:
        raise found.error("clip_qkv", "is not supported")
    biased = bool(keys.attention_bias)
    routing = Routing(keys.num_experts_per_tok, normalised=bool(keys.norm_topk_prob))
    config = replace(base(found), qk_norm="width", qkv_bias=biased, output_bias=biased)
    return mixed(found, config, ExpertsSpec(keys.num_experts, keys.intermediate_size, routing))


class GraniteMoeKeys(GraniteKeys, frozen=True):
    num_local_experts: Experts = 8
    num_experts_per_tok: Experts = 2
    shared_intermediate_size: Size | int = 0


def granite_moe(found: Found[GraniteMoeKeys]) -> ModelConfig:
    """Granite 3 MoE (IBM, 2024), with an expert of all tokens in the variant "shared"."""
    keys = found.keys
    experts = ExpertsSpec(
        keys.num_local_experts,
        keys.intermediate_size,
        Routing(keys.num_experts_per_tok),
        keys.shared_intermediate_size,
        names=_GRANITE,
    )
    return mixed(found, granite(found), experts)


class Glm4MoeKeys(GlmKeys, frozen=True):
    rms_norm_eps: Epsilon = 1e-5
    attention_bias: bool | None = False
    num_experts_per_tok: Experts = 8
    norm_topk_prob: bool | None = True
    n_routed_experts: Experts = 128
    moe_intermediate_size: Size = 1408
    n_shared_experts: Experts = 1
    n_group: Experts = 1
    topk_group: Experts = 1
    routed_scaling_factor: Positive = 1.0
    first_k_dense_replace: int = 1
    use_qk_norm: bool = False


def glm4_moe(found: Found[Glm4MoeKeys]) -> ModelConfig:
    """GLM-4.5 (Zhipu, 2025, arXiv:2508.06471): experts are scored by sigmoids."""
    keys, raw = found.keys, found.raw
    if "rope_parameters" not in raw:
        raw = {"partial_rotary_factor": 0.5, **raw}
    config = replace(
        base(replace(found, raw=raw)),
        qkv_bias=bool(keys.attention_bias),
        qk_norm="head" if keys.use_qk_norm else None,
        # The layer that guesses a further token.
        unused=(f"model.layers.{keys.num_hidden_layers}.",),
        raw=found.raw,
    )
    routing = Routing(
        keys.num_experts_per_tok,
        "sigmoid",
        bool(keys.norm_topk_prob),
        scale=keys.routed_scaling_factor,
        groups=keys.n_group,
        chosen_groups=keys.topk_group,
    )
    experts = ExpertsSpec(
        keys.n_routed_experts,
        keys.moe_intermediate_size,
        routing,
        keys.n_shared_experts * keys.moe_intermediate_size,
        corrected=True,
    )
    return mixed(found, config, experts, lambda layer: layer >= keys.first_k_dense_replace)


class ErnieMoeKeys(ErnieKeys, frozen=True):
    moe_intermediate_size: Size = 1536
    moe_k: Experts = 6
    moe_num_experts: Experts = 64
    moe_num_shared_experts: int = 2
    moe_layer_start_index: int = 1
    moe_layer_end_index: int = -1
    moe_layer_interval: Size = 1
    moe_norm_min: float = 1e-12


def ernie_moe(found: Found[ErnieMoeKeys]) -> ModelConfig:
    """ERNIE 4.5 MoE (Baidu, 2025): a correction of each expert's score takes part in the choice."""
    keys = found.keys
    if keys.use_bias:
        raise found.error("use_bias", "true is not supported")
    last = keys.moe_layer_end_index
    last = keys.num_hidden_layers - 1 if last < 0 else last
    experts = ExpertsSpec(
        keys.moe_num_experts,
        keys.moe_intermediate_size,
        Routing(keys.moe_k, floor=keys.moe_norm_min),
        max(0, keys.moe_num_shared_experts) * keys.moe_intermediate_size,
        corrected=True,
        names=_ERNIE,
    )

    def has(layer: int) -> bool:
        placed = (layer + 1) % keys.moe_layer_interval == 0
        return placed and keys.moe_layer_start_index <= layer <= last

    # Those that guess further tokens.
    return replace(mixed(found, ernie(found), experts, has), unused=("model.mtp_",))
