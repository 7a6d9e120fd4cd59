"""Llama 4's text model (Meta, 2025): experts beside an MLP that all tokens have.

Every fourth layer has no positions. The others attend within chunks: contexts are as long as one,
in which they see all.
"""

from __future__ import annotations

from dataclasses import replace

from hagane.models.config import (
    ExpertNames,
    ExpertsSpec,
    LayerSpec,
    ModelConfig,
    Routing,
    Temperature,
)
from hagane.models.families.keys import Epsilon, Found, Keys, Positive, Size
from hagane.models.families.llama import llama
from hagane.models.families.mixture import Experts, mixed

_NAMES = ExpertNames(
    router="feed_forward.router",
    experts=(
        "feed_forward.experts.{}.gate_proj",
        "feed_forward.experts.{}.up_proj",
        "feed_forward.experts.{}.down_proj",
    ),
    shared=(
        "feed_forward.shared_expert.gate_proj",
        "feed_forward.shared_expert.up_proj",
        "feed_forward.shared_expert.down_proj",
    ),
    joint="halves",
)


class Llama4Keys(Keys, frozen=True):
    head_dim: Size | None = 128
    rms_norm_eps: Epsilon = 1e-5
    intermediate_size_mlp: Size = 16384
    num_experts_per_tok: Experts = 1
    num_local_experts: Experts = 16
    moe_layers: list[int] | None = None
    interleave_moe_layer_step: Size = 1
    use_qk_norm: bool = True
    no_rope_layers: list[int] | None = None
    no_rope_layer_interval: Size = 4
    layer_types: list[str] | None = None  # type: ignore[assignment]
    attention_chunk_size: Size | None = 8192
    # Published configurations have the number 4, which means true.
    attn_temperature_tuning: bool | int = True
    floor_scale: Positive = 8192
    attn_scale: Positive = 0.1


def llama4(found: Found[Llama4Keys]) -> ModelConfig:
    keys = found.keys
    if keys.num_experts_per_tok != 1:
        raise found.error("num_experts_per_tok", f"is {keys.num_experts_per_tok}; supported is 1")
    config = llama(found)
    rope = replace(found.rope(theta=500000.0), interleaved=True)
    sparse = keys.moe_layers
    if sparse is None:
        step = keys.interleave_moe_layer_step
        sparse = list(range(step - 1, config.layers, step))
    config = replace(
        config,
        rope=rope,
        layer_specs=_layers(found, LayerSpec(None, rope)),
        intermediate_size=keys.intermediate_size_mlp,
        max_position_embeddings=min(
            keys.max_position_embeddings, keys.attention_chunk_size or keys.max_position_embeddings
        ),
        qk_norm="unit" if keys.use_qk_norm else None,
        names={"mlp": "feed_forward"},
    )
    experts = ExpertsSpec(
        keys.num_local_experts,
        keys.intermediate_size,
        Routing(1, "sigmoid", normalised=False),
        keys.intermediate_size,
        weighted_inputs=True,
        names=_NAMES,
    )
    return mixed(found, config, experts, lambda layer: layer in sparse)


def _layers(found: Found[Llama4Keys], turned: LayerSpec) -> tuple[LayerSpec, ...]:
    keys = found.keys
    layers, every = keys.num_hidden_layers, keys.no_rope_layer_interval
    turns = keys.no_rope_layers or [(layer + 1) % every for layer in range(layers)]
    if len(turns) != layers:
        raise found.error("no_rope_layers", f"must have {layers} entries")
    tuned = keys.attn_temperature_tuning
    other = LayerSpec(temperature=Temperature(keys.attn_scale, keys.floor_scale) if tuned else None)
    return tuple(turned if turn else other for turn in turns)
