"""Granite 3 (IBM, 2024): Llama with multipliers for embeddings, scores, blocks and logits."""

from __future__ import annotations

from dataclasses import replace

from hagane.models.config import ModelConfig
from hagane.models.families.keys import Found, Keys, Positive
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
