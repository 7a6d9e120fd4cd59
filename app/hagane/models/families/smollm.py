"""SmolLM3 (Hugging Face, 2025): every fourth layer attends without positions (arXiv:2501.18795)."""

from __future__ import annotations

from dataclasses import replace

from hagane.models.config import ModelConfig
from hagane.models.families.keys import Found, Keys, Size
from hagane.models.families.llama import llama


class SmolLM3Keys(Keys, frozen=True):
    tie_word_embeddings: bool | None = True
    no_rope_layers: list[int] | None = None
    no_rope_layer_interval: Size = 4
    use_sliding_window: bool | None = None


def smollm3(found: Found[SmolLM3Keys]) -> ModelConfig:
    config, keys = llama(found), found.keys
    rope = found.rope(theta=2000000.0)
    turned = keys.no_rope_layers
    if turned is None:
        turned = [(i + 1) % keys.no_rope_layer_interval for i in range(config.layers)]
    if len(turned) != config.layers:
        raise found.error("no_rope_layers", f"must have {config.layers} entries")
    specs = found.layers(found.kinds(), rope, rope)
    if not keys.use_sliding_window:
        specs = tuple(replace(spec, window=None) for spec in specs)
    specs = tuple(
        spec if turns else replace(spec, rope=None)
        for spec, turns in zip(specs, turned, strict=True)
    )
    return replace(config, rope=rope, layer_specs=specs)
