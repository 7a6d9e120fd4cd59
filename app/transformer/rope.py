"""Rotary position embeddings (Su et al., 2021, https://arxiv.org/abs/2104.09864).

Scalings: linear (position interpolation, Chen et al., 2023), llama3 (Llama 3.1's frequency bands)
and yarn (Peng et al., 2023, https://arxiv.org/abs/2309.00071).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from app.errors import ModelError

KINDS = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True, kw_only=True)
class RopeParameters:
    """How positions become rotation angles.

    `original_context` is the context length, in tokens, before the scaling by `factor`.
    `attention_factor` scales cos and sin (yarn), None derives it from `factor`.
    """

    head_dim: int
    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    @classmethod
    def from_config(
        cls, raw: Mapping[str, Any], source: str, head_dim: int, context: int
    ) -> RopeParameters:
        """Read `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (older).

        Raises ModelError naming the key that is missing, malformed or unsupported.
        """
        scaling = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        if not isinstance(scaling, dict):
            raise ModelError(f"{source}: rope_scaling must be an object, got {scaling!r}")
        kind = scaling.get("rope_type") or scaling.get("type") or "default"
        if kind not in KINDS:
            raise ModelError(
                f"{source}: rope_type {kind!r} is not supported; supported: {', '.join(KINDS)}"
            )
        if (scaling.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1) != 1:
            raise ModelError(f"{source}: partial_rotary_factor other than 1 is not supported")

        def number(key: str, default: float | None) -> float:
            value = scaling.get(key, raw.get(key) if key == "rope_theta" else None)
            value = default if value is None else value
            if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                raise ModelError(f"{source}: {key} must be a positive number, got {value!r}")
            return float(value)

        def optional(key: str) -> float | None:
            return None if scaling.get(key) is None else number(key, None)

        scaled = kind != "default"
        return cls(
            head_dim=head_dim,
            theta=number("rope_theta", 10000.0),
            kind=kind,
            factor=number("factor", None) if scaled else 1.0,
            original_context=int(number("original_max_position_embeddings", context)),
            low_freq_factor=number("low_freq_factor", 1.0),
            high_freq_factor=number("high_freq_factor", 4.0),
            beta_fast=number("beta_fast", 32.0),
            beta_slow=number("beta_slow", 1.0),
            attention_factor=optional("attention_factor"),
            mscale=optional("mscale"),
            mscale_all_dim=optional("mscale_all_dim"),
            truncate=bool(scaling.get("truncate", True)),
        )

    def to_dict(self) -> dict[str, Any]:
        """The keys of `config.json` that `from_config` reads back, for old and new readers."""
        parameters: dict[str, Any] = {"rope_type": self.kind, "rope_theta": self.theta}
        if self.kind != "default":
            parameters["factor"] = self.factor
        if self.kind in ("llama3", "yarn"):
            parameters["original_max_position_embeddings"] = self.original_context
        if self.kind == "llama3":
            parameters |= {
                "low_freq_factor": self.low_freq_factor,
                "high_freq_factor": self.high_freq_factor,
            }
        if self.kind == "yarn":
            optional = {
                "attention_factor": self.attention_factor,
                "mscale": self.mscale,
                "mscale_all_dim": self.mscale_all_dim,
            }
            parameters |= {
                "beta_fast": self.beta_fast,
                "beta_slow": self.beta_slow,
                "truncate": self.truncate,
                **{key: value for key, value in optional.items() if value is not None},
            }
        legacy = None if self.kind == "default" else parameters
        return {
            "rope_parameters": parameters,
            "rope_theta": self.theta,
            "rope_scaling": legacy,
        }

    def inverse_frequencies(self) -> Tensor:
        """Angle per position of every pair of features: float32 [head_dim / 2]."""
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
        plain = 1.0 / self.theta**exponents
        if self.kind == "linear":
            return plain / self.factor
        if self.kind == "llama3":
            return self._llama3(plain)
        if self.kind == "yarn":
            return self._yarn(plain)
        return plain

    def magnitude(self) -> float:
        """What cos and sin are multiplied with: yarn's attention temperature, else 1."""
        if self.kind != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._mscale(self.mscale) / self._mscale(self.mscale_all_dim)
        return self._mscale(1.0)

    def _mscale(self, scale: float) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * scale * math.log(self.factor) + 1.0

    def _llama3(self, plain: Tensor) -> Tensor:
        wavelengths = 2 * math.pi / plain
        rotations = self.original_context / wavelengths
        band = self.high_freq_factor - self.low_freq_factor
        keep = ((rotations - self.low_freq_factor) / band).clamp(0, 1)
        return (1 - keep) * plain / self.factor + keep * plain

    def _yarn(self, plain: Tensor) -> Tensor:
        def dimension(rotations: float) -> float:
            periods = self.original_context / (rotations * 2 * math.pi)
            return self.head_dim * math.log(periods) / (2 * math.log(self.theta))

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.head_dim - 1)
        # A ramp of no width would divide by zero.
        width = (high - low) or 0.001
        pairs = torch.arange(self.head_dim // 2, dtype=torch.float32)
        interpolate = ((pairs - low) / width).clamp(0, 1)
        return interpolate * plain / self.factor + (1 - interpolate) * plain


class RotaryEmbedding(nn.Module):
    """Computes the cosines and sines that one forward pass shares between its layers."""

    inverse_frequencies: Tensor

    def __init__(self, parameters: RopeParameters) -> None:
        super().__init__()
        self.magnitude = parameters.magnitude()
        # Computed on the CPU even while the model is built on the meta device.
        with torch.device("cpu"):
            frequencies = parameters.inverse_frequencies()
        self.register_buffer("inverse_frequencies", frequencies, persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, each float32 [tokens, head_dim / 2], for int64 positions [tokens]."""
        angles = positions.float()[:, None] * self.inverse_frequencies
        return angles.cos() * self.magnitude, angles.sin() * self.magnitude
