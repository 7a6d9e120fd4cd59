"""Phi-3, 3.5 and 4 (Microsoft, 2024, arXiv:2404.14219): one matrix for queries, keys and values."""

from __future__ import annotations

from dataclasses import replace

from hagane.models.config import ModelConfig
from hagane.models.families.keys import Epsilon, Found, Keys
from hagane.models.families.llama import windowed


class Phi3Keys(Keys, frozen=True):
    rms_norm_eps: Epsilon = 1e-5


def phi3(found: Found[Phi3Keys]) -> ModelConfig:
    return replace(windowed(found), fused=("qkv_proj", "gate_up_proj"))
