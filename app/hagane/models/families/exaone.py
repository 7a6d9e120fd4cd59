"""EXAONE 4 (LG AI Research, 2025, arXiv:2507.11407): norms after blocks, and of queries and keys.

Where layers have windows, those without one attend without positions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from msgspec import Meta

from hagane.models.config import ModelConfig
from hagane.models.families.keys import Epsilon, Found, Keys
from hagane.models.families.llama import base
from hagane.models.families.olmo import NAMES_AFTER


class Exaone4Keys(Keys, frozen=True):
    rms_norm_eps: Epsilon = 1e-5
    # 0, or as texts such as "LLLG".
    sliding_window_pattern: Annotated[int, Meta(ge=0, le=4096)] | str | None = 4


def exaone4(found: Found[Exaone4Keys]) -> ModelConfig:
    config, keys = base(found), found.keys
    pattern = keys.sliding_window_pattern
    period = len(pattern) if isinstance(pattern, str) else pattern
    full = config.rope if keys.sliding_window is None else None
    return replace(
        config,
        norms="after",
        names=NAMES_AFTER,
        qk_norm="head",
        layer_specs=found.layers(found.kinds(period=period), full, config.rope),
    )
