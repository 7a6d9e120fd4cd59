"""The keys of `config.json` that every family has, with their types and bounds.

A family adds its own keys by a subclass:

    class GraniteKeys(Keys, frozen=True):
        residual_multiplier: Positive = 1.0
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
from msgspec import Meta

from hagane.models.config import DTYPES, LayerSpec, Quantization
from hagane.models.rope_parameters import RopeParameters
from hagane.system.errors import ModelError
from hagane.system.weight_formats import WEIGHT_FORMATS

# Building a model of a mistyped size would take for ever.
Size = Annotated[int, Meta(ge=1, le=1 << 24)]
Count = Annotated[int, Meta(ge=1, le=4096)]
Epsilon = Annotated[float, Meta(gt=0, lt=1)]
Positive = Annotated[float, Meta(gt=0, le=1e15)]
LayerKind = Literal["sliding_attention", "full_attention"]

_WINDOWED: LayerKind = "sliding_attention"


class Keys(msgspec.Struct, frozen=True):
    """Sizes are counts of features, heads, tokens or layers; None is "not given"."""

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Count
    num_attention_heads: Size
    max_position_embeddings: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    rms_norm_eps: Epsilon = 1e-6
    hidden_act: str | None = None
    hidden_activation: str | None = None
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    tie_word_embeddings: bool | None = None
    sliding_window: Size | None = None
    layer_types: list[LayerKind] | None = None
    bos_token_id: int | list[int] | None = None
    eos_token_id: int | list[int] | None = None
    dtype: str | None = None
    torch_dtype: str | None = None


Read = TypeVar("Read", bound=Keys, covariant=True)


@dataclass(frozen=True)
class Found(Generic[Read]):
    """A `config.json`: its checked `keys`, all of it as `raw`, and what errors call it."""

    keys: Read
    raw: Mapping[str, Any]
    source: str

    def error(self, key: str, problem: str) -> ModelError:
        return ModelError(f"{self.source}: {key} {problem}")

    @property
    def kv_heads(self) -> int:
        heads = self.keys.num_attention_heads
        kv_heads = self.keys.num_key_value_heads or heads
        if heads % kv_heads:
            raise self.error("num_key_value_heads", f"{kv_heads} does not divide {heads} heads")
        return kv_heads

    @property
    def head_dim(self) -> int:
        return self.keys.head_dim or self.keys.hidden_size // self.keys.num_attention_heads

    @property
    def epsilon(self) -> float:
        if not math.isfinite(self.keys.rms_norm_eps):
            raise self.error("rms_norm_eps", f"is {self.keys.rms_norm_eps}")
        return self.keys.rms_norm_eps

    @property
    def activation(self) -> str | None:
        return self.keys.hidden_activation or self.keys.hidden_act

    def rope(self, layers: LayerKind | None = None, *, theta: float = 10000.0) -> RopeParameters:
        """The rotation of one kind of layers; of all, if they have the same."""
        context = self.keys.max_position_embeddings
        return RopeParameters.from_config(
            self.raw, self.source, self.head_dim, context, layers=layers, theta=theta
        )

    def kinds(self, *, period: int | None = None) -> list[LayerKind]:
        """The kind of every layer: as listed, or every `period`th with full attention.

        Without a period all have it, or all a window where there is one.
        """
        layers, kinds = self.keys.num_hidden_layers, self.keys.layer_types
        if kinds is not None:
            if len(kinds) != layers:
                raise self.error("layer_types", f"must name {layers} layers, not {len(kinds)}")
            return kinds
        if self.keys.sliding_window is None or period == 0:
            return ["full_attention"] * layers
        if period is None:
            return [_WINDOWED] * layers
        return ["full_attention" if (i + 1) % period == 0 else _WINDOWED for i in range(layers)]

    def layers(
        self, kinds: list[LayerKind], full: RopeParameters | None, windowed: RopeParameters | None
    ) -> tuple[LayerSpec, ...]:
        """Specs of layers of these kinds, and the rotation of each kind."""
        window = self.keys.sliding_window
        if _WINDOWED in kinds and window is None:
            raise self.error("sliding_window", "is not given, but layer_types names it")
        specs: dict[LayerKind, LayerSpec] = {
            "full_attention": LayerSpec(None, full),
            _WINDOWED: LayerSpec(window, windowed),
        }
        return tuple(specs[kind] for kind in kinds)

    def token_ids(self, value: int | list[int] | None) -> tuple[int, ...]:
        ids = value if isinstance(value, list) else [] if value is None else [value]
        # -1 is how some say "none".
        return tuple(i for i in ids if i >= 0)

    @property
    def dtype(self) -> str:
        # Old exporters wrote the name with that of its module.
        name = (self.keys.dtype or self.keys.torch_dtype or "float32").removeprefix("torch.")
        if name not in DTYPES:
            raise self.error("torch_dtype", f"is {name!r}; supported are {', '.join(DTYPES)}")
        return name

    @property
    def quantization(self) -> Quantization | None:
        return _quantization(self.raw.get("quantization_config"), self)


class _StoredQuantization(msgspec.Struct, frozen=True):
    # Directories from before there was fp8 name bits, and no group size but 64.
    format: str | None = None
    bits: Literal[4, 8] | None = None
    group_size: Literal[32, 64, 128] = 64
    rotated: bool = False
    eight_bits: list[str] = []
    measured_loss: float | None = None


def _quantization(stored: Any, found: Found[Any]) -> Quantization | None:
    if stored is None:
        return None
    if not isinstance(stored, dict) or stored.get("quant_method") != "hagane":
        return None  # another program's (`models.stored`)
    try:
        read = msgspec.convert(stored, _StoredQuantization)
    except msgspec.ValidationError as error:
        raise found.error("quantization_config", f"is {stored!r}: {error}") from None
    name = read.format or {8: "int8", 4: "int4", None: None}[read.bits]
    if name not in WEIGHT_FORMATS:
        raise found.error("quantization_config", f"has format {name!r}")
    return Quantization(
        name, read.group_size, read.rotated, tuple(read.eight_bits), read.measured_loss
    )
