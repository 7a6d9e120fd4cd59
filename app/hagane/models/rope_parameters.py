"""What a model's `config.json` says of its rotary position embeddings.

Apart from their computation (`rope.py`), so that reading a configuration needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hagane.system.errors import ModelError

KINDS = ("default", "linear", "llama3", "yarn")
# Of factors, context lengths and bases; NaN and infinity are beyond it.
_LARGEST = 1e15


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
        scaling = _of_all_layers(scaling, source)
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
            numeric = isinstance(value, int | float) and not isinstance(value, bool)
            if value is None or not numeric or not 0 < value <= _LARGEST:
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


def _of_all_layers(scaling: dict[str, Any], source: str) -> dict[str, Any]:
    """The parameters, which some files give for each kind of layer: all must be the same."""
    kinds = {kind: value for kind, value in scaling.items() if kind.endswith("_attention")}
    if not kinds:
        return scaling
    first, *others = kinds.values()
    if not isinstance(first, dict) or any(other != first for other in others):
        raise ModelError(
            f"{source}: rope_parameters differ between the kinds of layers {', '.join(kinds)}; "
            "models with one kind of rotation are supported"
        )
    return first
