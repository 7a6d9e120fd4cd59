"""gpt-oss (OpenAI, 2025, arXiv:2508.10925): sinks, windows in every other layer, MXFP4 experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hagane.models.config import ExpertNames, ExpertsSpec, ModelConfig, Routing
from hagane.models.families.keys import Epsilon, Found, Keys, Size
from hagane.models.families.llama import base
from hagane.models.families.mixture import Experts, mixed

_NAMES = ExpertNames(router="mlp.router", joint="alternating")
_YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


class GptOssKeys(Keys, frozen=True):
    head_dim: Size | None = 64
    rms_norm_eps: Epsilon = 1e-5
    attention_bias: bool | None = True
    sliding_window: Size | None = 128
    num_local_experts: Experts = 128
    num_experts_per_tok: Experts = 4
    swiglu_alpha: float = 1.702
    swiglu_limit: float = 7.0


def gpt_oss(found: Found[GptOssKeys]) -> ModelConfig:
    keys, raw = found.keys, found.raw
    for key, supported in (("swiglu_alpha", 1.702), ("swiglu_limit", 7.0)):
        if getattr(keys, key) != supported:
            raise found.error(key, f"is {getattr(keys, key)}; supported is {supported}")
    if not (raw.get("rope_parameters") or raw.get("rope_scaling")):
        raw = {**raw, "rope_parameters": _YARN}
    known = replace(found, raw=raw)
    config = base(known)
    rope = known.rope(theta=150000.0)
    kinds = keys.layer_types or [
        "full_attention" if layer % 2 else "sliding_attention" for layer in range(config.layers)
    ]
    biased = bool(keys.attention_bias)
    config = replace(
        config,
        rope=rope,
        layer_specs=replace(found, keys=keys).layers(kinds, rope, rope),
        sinks=True,
        qkv_bias=biased,
        output_bias=biased,
        activation="clamped",
        raw=found.raw,
    )
    experts = ExpertsSpec(
        keys.num_local_experts,
        keys.intermediate_size,
        Routing(keys.num_experts_per_tok),
        router_bias=True,
        bias=True,
        names=_NAMES,
    )
    return mixed(found, config, experts)
