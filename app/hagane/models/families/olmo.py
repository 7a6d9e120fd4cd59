"""OLMo 1 (Ai2, 2024, arXiv:2402.00838): LayerNorm without weights, bounds of queries to values.

OLMo 2 and 3 (2024 and 2025, arXiv:2501.00656) normalise what blocks add, not inputs. Queries
and keys are normalised over all heads. OLMo 3 has a window in three of four layers.
"""

from __future__ import annotations

from dataclasses import replace

from hagane.models.config import ModelConfig
from hagane.models.families.keys import Epsilon, Found, Keys, Positive, Size
from hagane.models.families.llama import base

NAMES_AFTER = {
    "attention_output_norm": "post_attention_layernorm",
    "mlp_output_norm": "post_feedforward_layernorm",
}


class OlmoKeys(Keys, frozen=True):
    rms_norm_eps: Epsilon = 1e-5


class Olmo3Keys(OlmoKeys, frozen=True):
    sliding_window: Size | None = 4096


class Olmo1Keys(Keys, frozen=True):
    clip_qkv: Positive | None = None


def olmo1(found: Found[Olmo1Keys]) -> ModelConfig:
    biased = bool(found.keys.attention_bias)
    return replace(
        base(found),
        norm="layer",
        norm_eps=1e-5,
        norm_weights=False,
        qkv_clip=found.keys.clip_qkv or 0.0,
        qkv_bias=biased,
        output_bias=biased,
    )


def olmo2(found: Found[OlmoKeys]) -> ModelConfig:
    biased = bool(found.keys.attention_bias)
    return replace(
        base(found),
        norms="after",
        qk_norm="width",
        names=NAMES_AFTER,
        qkv_bias=biased,
        output_bias=biased,
    )


def olmo3(found: Found[Olmo3Keys]) -> ModelConfig:
    full = found.rope("full_attention", theta=500000.0)
    plain = {"rope_theta": found.raw.get("rope_theta")}
    nested = "sliding_attention" in (found.raw.get("rope_parameters") or {})
    local = replace(found, raw=found.raw if nested else plain)
    windowed = local.rope("sliding_attention", theta=500000.0)
    unscaled = {**found.raw, "rope_parameters": None, "rope_scaling": None}
    return replace(
        olmo2(replace(found, raw=unscaled)),
        rope=full,
        layer_specs=found.layers(found.kinds(period=4), full, windowed),
        raw=found.raw,
    )
