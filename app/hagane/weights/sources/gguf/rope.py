"""The rotation of a GGUF file's model as keys of `config.json`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hagane.weights.sources.gguf.metadata import Metadata


def rope(metadata: Metadata, head_dim: int) -> dict[str, Any]:
    turned = metadata.integer("rope.dimension_count", head_dim)
    theta = metadata.number("rope.freq_base", 10000.0)
    plain = {"rope_theta": theta, "partial_rotary_factor": turned / head_dim}
    if metadata.has("rope_freqs.weight"):
        return plain | {"rope_scaling": _llama3_scaling(metadata, turned, theta)}
    if metadata.has("rope_factors_long.weight"):
        return plain | {"rope_scaling": metadata.longrope(turned)}
    kind = metadata.get("rope.scaling.type")
    if kind is None or (isinstance(kind, str) and kind in ("", "none")):
        return plain
    if not isinstance(kind, str) or kind not in ("linear", "yarn"):
        raise metadata.file.error(f"has the rope.scaling.type {kind!r}; read are linear and yarn")
    scaling: dict[str, Any] = {"rope_type": kind, "factor": metadata.number("rope.scaling.factor")}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = metadata.integer(
            "rope.scaling.original_context_length"
        )
        if metadata.get("rope.scaling.attn_factor") is not None:
            scaling["attention_factor"] = metadata.number("rope.scaling.attn_factor")
    return plain | {"rope_scaling": scaling}


def _llama3_scaling(metadata: Metadata, head_dim: int, theta: float) -> dict[str, Any]:
    """Llama 3's scaling, which GGUF stores as the divisor of each frequency.

    All of these models have the same bounds; the divisors are computed again to be sure.
    """
    file = metadata.file
    stored = np.array(metadata.floats("rope_freqs.weight", head_dim // 2))
    factor, low, high, context = float(stored[-1]), 1.0, 4.0, 8192
    wavelength = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = ((context / wavelength - low) / (high - low)).clip(0, 1)
    if metadata.architecture == "llama4":
        high, context = 1.0, 8192
        smooth = (wavelength <= context).astype(float)
    if not factor > 0 or not np.allclose(stored, 1 / ((1 - smooth) / factor + smooth), rtol=1e-4):
        raise file.error("has rope_freqs.weight that are not Llama 3's: they are not supported")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": context,
    }
