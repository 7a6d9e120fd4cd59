"""Phi-3, 3.5 and 4 (Microsoft, 2024, arXiv:2404.14219): one matrix for queries, keys and values.

Phi-3.5-MoE has biases, LayerNorm, and chooses two experts by SparseMixer (arXiv:2409.12136).
"""

from __future__ import annotations

from dataclasses import replace

from hagane.models.config import ExpertsSpec, ModelConfig, Routing
from hagane.models.families.keys import Epsilon, Found, Keys, Positive
from hagane.models.families.llama import windowed
from hagane.models.families.mixtral import NAMES
from hagane.models.families.mixture import Experts, mixed


class Phi3Keys(Keys, frozen=True):
    rms_norm_eps: Epsilon = 1e-5


def phi3(found: Found[Phi3Keys]) -> ModelConfig:
    return replace(windowed(found), fused=("qkv_proj", "gate_up_proj"))


class PhimoeKeys(Keys, frozen=True):
    rms_norm_eps: Epsilon = 1e-5
    num_local_experts: Experts = 16
    num_experts_per_tok: Experts = 2
    router_jitter_noise: Positive = 0.01
    lm_head_bias: bool = False


def phimoe(found: Found[PhimoeKeys]) -> ModelConfig:
    keys = found.keys
    if keys.num_experts_per_tok != 2:
        raise found.error("num_experts_per_tok", f"is {keys.num_experts_per_tok}; supported is 2")
    if keys.lm_head_bias and keys.tie_word_embeddings:
        raise found.error("lm_head_bias", "true is not supported with tie_word_embeddings")
    biased, config = bool(keys.attention_bias), windowed(found)
    rope = found.rope(theta=1000000.0)
    scaling = found.raw.get("rope_parameters") or found.raw.get("rope_scaling") or {}
    if rope.kind == "longrope":
        factor = scaling.get("long_mscale" if rope.long else "short_mscale")
        if not isinstance(factor, float | int) or not 0 < factor < 1e6:
            raise found.error("rope_scaling", f"has the scale {factor!r}")
        rope = replace(rope, attention_factor=float(factor))
    config = replace(
        config,
        rope=rope,
        layer_specs=tuple(replace(spec, rope=rope) for spec in config.layer_specs),
        norm="layer",
        norm_bias=True,
        qkv_bias=biased,
        output_bias=biased,
        head_bias=keys.lm_head_bias,
    )
    routing = Routing(2, jitter=keys.router_jitter_noise)
    experts = ExpertsSpec(keys.num_local_experts, keys.intermediate_size, routing, names=NAMES)
    return mixed(found, config, experts)
