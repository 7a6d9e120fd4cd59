"""Families that are Llama's block but for one of its switches."""

from __future__ import annotations

from dataclasses import replace

from hagane.models.config import ModelConfig
from hagane.models.families.keys import Epsilon, Found, Keys, Size
from hagane.models.families.llama import base


class SeedKeys(Keys, frozen=True):
    head_dim: Size | None = 128
    attention_bias: bool | None = True
    attention_out_bias: bool = False


def seed_oss(found: Found[SeedKeys]) -> ModelConfig:
    """Seed-OSS (ByteDance, 2025): biases of queries, keys and values."""
    keys = found.keys
    return replace(
        base(found),
        qkv_bias=bool(keys.attention_bias),
        output_bias=keys.attention_out_bias,
        mlp_bias=bool(keys.mlp_bias),
    )


class ErnieKeys(Keys, frozen=True):
    head_dim: Size | None = 128
    rms_norm_eps: Epsilon = 1e-5
    use_bias: bool | None = False
    tie_word_embeddings: bool | None = True


def ernie(found: Found[ErnieKeys]) -> ModelConfig:
    """ERNIE 4.5 dense (Baidu, 2025): neighbouring features are turned together."""
    config, biased = base(found), bool(found.keys.use_bias)
    rope = replace(found.rope(theta=500000.0), interleaved=True)
    return replace(
        config,
        rope=rope,
        layer_specs=tuple(replace(spec, rope=rope) for spec in config.layer_specs),
        qkv_bias=biased,
        output_bias=biased,
        mlp_bias=biased,
    )


def helium(found: Found[Keys]) -> ModelConfig:
    """Helium (Kyutai, 2025): neighbouring features are turned together."""
    config = base(found)
    rope = replace(found.rope(theta=100000.0), interleaved=True)
    specs = tuple(replace(spec, rope=rope) for spec in config.layer_specs)
    return replace(config, rope=rope, layer_specs=specs)


def hunyuan(found: Found[Keys]) -> ModelConfig:
    """Hunyuan dense (Tencent, 2025): queries and keys are normalised once they are turned."""
    keys, raw = found.keys, found.raw
    scaling = raw.get("rope_parameters") or raw.get("rope_scaling")
    if isinstance(scaling, dict) and isinstance(alpha := scaling.get("alpha"), int | float):
        # "dynamic" in files; a given alpha makes the base a constant.
        theta = scaling.get("rope_theta", raw.get("rope_theta", 10000.0))
        stretched = theta * alpha ** (found.head_dim / (found.head_dim - 2))
        raw = {**raw, "rope_scaling": None, "rope_parameters": None, "rope_theta": stretched}
    biased = bool(keys.attention_bias)
    return replace(
        base(replace(found, raw=raw)),
        qk_norm="turned",
        qkv_bias=biased,
        output_bias=biased,
        mlp_bias=bool(keys.mlp_bias),
        names={"q_norm": "query_layernorm", "k_norm": "key_layernorm"},
        raw=found.raw,
    )
