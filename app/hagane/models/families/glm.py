"""GLM-4 (Zhipu and Tsinghua, 2024, arXiv:2406.12793): half of each head turned, neighbours paired.

The files of 2025 ("Glm4ForCausalLM") normalise what blocks add, too.
"""

from __future__ import annotations

from dataclasses import replace

from hagane.models.config import ModelConfig
from hagane.models.families.keys import Epsilon, Found, Keys, Size
from hagane.models.families.llama import base

_NAMES = {
    "attention_output_norm": "post_self_attn_layernorm",
    "mlp_output_norm": "post_mlp_layernorm",
}


class GlmKeys(Keys, frozen=True):
    head_dim: Size | None = 128
    rms_norm_eps: Epsilon = 1.5625e-07
    attention_bias: bool | None = True


def glm(found: Found[GlmKeys]) -> ModelConfig:
    raw = found.raw
    if "rope_parameters" not in raw:
        # Files of before transformers 5 do not state the part of a head that is turned.
        raw = {"partial_rotary_factor": 0.5, **raw}
    config = base(replace(found, raw=raw))
    rope = replace(config.rope, interleaved=True)
    return replace(
        config,
        rope=rope,
        layer_specs=tuple(replace(spec, rope=rope) for spec in config.layer_specs),
        qkv_bias=bool(found.keys.attention_bias),
        fused=("gate_up_proj",),
        raw=found.raw,
    )


def glm4(found: Found[GlmKeys]) -> ModelConfig:
    return replace(glm(found), norms="around", names=_NAMES)
