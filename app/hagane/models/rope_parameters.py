"""The rotary position embeddings of a model's `config.json`.

Apart from their computation (`rope.py`), so that reading a configuration needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hagane.system.errors import ModelError

KINDS = ("default", "linear", "llama3", "yarn", "longrope")
# Old names of longrope in Phi-3's files.
_LONGROPE = ("su",)
# Of factors, context lengths and bases; NaN and infinity are beyond it.
_LARGEST = 1e15
# Keys that old files have alongside the object.
_ALONGSIDE = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")


@dataclass(frozen=True, kw_only=True)
class RopeParameters:
    """How positions become rotation angles.

    The first `rotated` features of a head are turned: feature i with i + rotated / 2, or neighbours
    if `interleaved`. `original_context` is the context length, in tokens, before the scaling by
    `factor`. `attention_factor` scales cos and sin (yarn, longrope), None derives it from `factor`.
    `short_factor` and `long_factor` (longrope) divide each frequency, in contexts up to the
    original one and beyond it; `long` says which are used.
    """

    rotated: int
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
    interleaved: bool = False
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    long: bool = False

    @classmethod
    def from_config(
        cls,
        raw: Mapping[str, Any],
        source: str,
        head_dim: int,
        context: int,
        *,
        layers: str | None = None,
        theta: float = 10000.0,
    ) -> RopeParameters:
        """Read `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (older).

        Of parameters by kind of layer those of `layers` are read; None: all must be the same.
        `theta` is the base where none is given.

        Raises ModelError naming the key that is missing, malformed or unsupported.
        """
        scaling = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        if not isinstance(scaling, dict):
            raise ModelError(f"{source}: rope_scaling must be an object, got {scaling!r}")
        scaling = _of_layers(scaling, source, layers)
        kind = scaling.get("rope_type") or scaling.get("type") or "default"
        kind = "longrope" if kind in _LONGROPE else kind
        if kind not in KINDS:
            raise ModelError(
                f"{source}: rope_type {kind!r} is not supported; supported: {', '.join(KINDS)}"
            )

        def number(key: str, default: float | None) -> float:
            value = scaling.get(key, raw.get(key) if key in _ALONGSIDE else None)
            value = default if value is None else value
            numeric = isinstance(value, int | float) and not isinstance(value, bool)
            if value is None or not numeric or not 0 < value <= _LARGEST:
                raise ModelError(f"{source}: {key} must be a positive number, got {value!r}")
            return float(value)

        def optional(key: str) -> float | None:
            return None if scaling.get(key) is None else number(key, None)

        part = number("partial_rotary_factor", 1.0)
        rotated = int(head_dim * part)
        if part > 1 or rotated % 2:
            raise ModelError(f"{source}: partial_rotary_factor {part} does not halve a head")
        original = int(number("original_max_position_embeddings", context))
        # Only longrope derives it.
        stretch = context / original if kind == "longrope" else None
        return cls(
            rotated=rotated,
            theta=number("rope_theta", theta),
            kind=kind,
            factor=number("factor", stretch) if kind != "default" else 1.0,
            original_context=original,
            short_factor=_factors(scaling, "short_factor", source, rotated, kind),
            long_factor=_factors(scaling, "long_factor", source, rotated, kind),
            long=kind == "longrope" and context > original,
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
        """The factor of cos and sin: yarn's or longrope's temperature, else 1."""
        if self.kind not in ("yarn", "longrope"):
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.kind == "longrope":
            grown = math.log(max(self.factor, 1)) / math.log(self.original_context)
            return math.sqrt(1 + grown)
        if self.mscale and self.mscale_all_dim:
            return self._mscale(self.mscale) / self._mscale(self.mscale_all_dim)
        return self._mscale(1.0)

    def score_factor(self) -> float:
        """What DeepSeek multiplies scores by on top: the square of yarn's temperature, or 1."""
        if self.kind != "yarn" or not self.mscale_all_dim:
            return 1.0
        return self._mscale(self.mscale_all_dim) ** 2

    def _mscale(self, scale: float) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * scale * math.log(self.factor) + 1.0


def _of_layers(scaling: dict[str, Any], source: str, layers: str | None) -> dict[str, Any]:
    """The parameters, which some files give for each kind of layer."""
    kinds = {kind: value for kind, value in scaling.items() if kind.endswith("_attention")}
    if not kinds:
        return scaling
    chosen = [kinds[layers]] if layers in kinds else list(kinds.values())
    first, *others = chosen
    if not isinstance(first, dict) or any(other != first for other in others):
        raise ModelError(
            f"{source}: rope_parameters differ between the kinds of layers {', '.join(kinds)}, "
            "which this architecture does not allow"
        )
    return first


def _factors(
    scaling: Mapping[str, Any], key: str, source: str, rotated: int, kind: str
) -> tuple[float, ...]:
    """Longrope's divisors, one for each frequency."""
    if kind != "longrope":
        return ()
    values = scaling.get(key)
    numeric = isinstance(values, list) and all(
        isinstance(v, int | float) and 0 < v <= _LARGEST for v in values
    )
    if not numeric or len(values or ()) != rotated // 2:
        raise ModelError(f"{source}: {key} must be a list of {rotated // 2} positive numbers")
    return tuple(float(v) for v in values or ())
