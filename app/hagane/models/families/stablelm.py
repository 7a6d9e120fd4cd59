"""StableLM (Stability AI, 2024, arXiv:2402.17834): LayerNorm, a quarter of each head turned."""

from __future__ import annotations

from dataclasses import replace

from hagane.models.config import ModelConfig
from hagane.models.families.keys import Epsilon, Found, Keys
from hagane.models.families.llama import base


class StableLmKeys(Keys, frozen=True):
    layer_norm_eps: Epsilon = 1e-5
    use_qkv_bias: bool = False
    qk_layernorm: bool = False
    use_parallel_residual: bool = False


def stablelm(found: Found[StableLmKeys]) -> ModelConfig:
    keys = found.keys
    if keys.qk_layernorm:
        raise found.error("qk_layernorm", "true is not supported")
    raw = found.raw
    if "rope_parameters" not in raw:
        raw = {"partial_rotary_factor": 0.25, **raw}
    return replace(
        base(replace(found, raw=raw)),
        norm="layer",
        norm_bias=True,
        norm_eps=keys.layer_norm_eps,
        norms="shared" if keys.use_parallel_residual else "before",
        qkv_bias=keys.use_qkv_bias,
        raw=found.raw,
    )
