"""Granite 3 and 4 (IBM, 2024, 2025): Llama with multipliers of embeddings, scores, blocks, logits.

Of Granite 4 the models without state spaces: positions may be unknown, and the MLP is called the
shared one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import msgspec

from hagane.models.config import ModelConfig
from hagane.models.families.keys import Found, Keys, Positive, Size
from hagane.models.families.llama import llama


class GraniteKeys(Keys, frozen=True):
    embedding_multiplier: Positive = 1.0
    attention_multiplier: Positive = 1.0
    residual_multiplier: Positive = 1.0
    logits_scaling: Positive = 1.0


def granite(found: Found[GraniteKeys]) -> ModelConfig:
    keys = found.keys
    return replace(
        llama(found),
        embedding_scale=keys.embedding_multiplier,
        attention_scale=keys.attention_multiplier,
        residual_scale=keys.residual_multiplier,
        logit_scale=1 / keys.logits_scaling,
    )


_HYBRID_NAMES = {"mlp": "shared_mlp", "gate_up_proj": "input_linear", "down_proj": "output_linear"}


class GraniteHybridKeys(GraniteKeys, frozen=True):
    # "attention" in older files.
    layer_types: list[str] | None = None  # type: ignore[assignment]
    shared_intermediate_size: Size = 1024
    num_local_experts: int | None = 8
    position_embedding_type: Literal["rope", "nope"] | None = None


def granite_hybrid(found: Found[GraniteHybridKeys]) -> ModelConfig:
    keys = found.keys
    kinds = set(keys.layer_types or ["mamba"])
    if kinds - {"attention", "full_attention"}:
        raise found.error("layer_types", f"has {', '.join(sorted(kinds))}: supported is attention")
    if keys.num_local_experts:
        raise found.error("num_local_experts", f"is {keys.num_local_experts}; supported is 0")
    own = msgspec.structs.replace(
        keys, layer_types=None, intermediate_size=keys.shared_intermediate_size
    )
    config = granite(replace(found, keys=own))
    if keys.position_embedding_type != "rope":
        specs = tuple(replace(spec, rope=None) for spec in config.layer_specs)
        config = replace(config, layer_specs=specs)
    return replace(config, fused=("gate_up_proj",), names=_HYBRID_NAMES)
