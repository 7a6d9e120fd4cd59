"""Make linear layers and embeddings in the format that a model is quantized to.

An embedding maps ids [tokens] to [tokens, hidden]. It is also a head: `logits` maps [n, hidden] to
float32 [n, vocab] with the same storage, so that a tied head costs nothing. Embeddings and heads
are int8 in any quantized model: coarser weights cost most there.
"""

from __future__ import annotations

from collections.abc import Callable

from hagane.models.config import ModelConfig, Quantization
from hagane.models.formats.dense import Dense, DenseEmbedding
from hagane.models.formats.fp8 import Fp8
from hagane.models.formats.int4 import GROUP_SIZES, Int4
from hagane.models.formats.int8 import Int8, Int8Embedding
from hagane.models.formats.layer import Linear, QuantizedLinear, rotation_block
from hagane.models.spec import projection_at

Quantized = QuantizedLinear | Int8Embedding


def _int4(
    in_features: int, out_features: int, bias: bool, quantization: Quantization
) -> Int4 | Int8:
    """The largest group up to the requested one that divides `in_features`; int8 if none does."""
    for group in GROUP_SIZES:
        if group <= quantization.group_size and in_features % group == 0:
            rotation = _rotation(in_features, quantization)
            return Int4(in_features, out_features, bias, group, rotation)
    return _int8(in_features, out_features, bias, quantization)


def _int8(in_features: int, out_features: int, bias: bool, quantization: Quantization) -> Int8:
    return Int8(in_features, out_features, bias, _rotation(in_features, quantization))


def _fp8(in_features: int, out_features: int, bias: bool, _: Quantization) -> Fp8:
    return Fp8(in_features, out_features, bias)


def _rotation(features: int, quantization: Quantization) -> int:
    return rotation_block(features) if quantization.rotated else 0


# The layer of every declared format.
_LAYERS: dict[str, Callable[[int, int, bool, Quantization], QuantizedLinear]] = {
    "int8": _int8,
    "int4": _int4,
    "fp8": _fp8,
}


def make_linear(
    in_features: int,
    out_features: int,
    *,
    bias: bool,
    quantization: Quantization | None,
    eight_bits: bool = False,
) -> Linear:
    """The linear layer for `quantization`, with 8 bits instead of 4 for `eight_bits`."""
    if quantization is None:
        return Dense(in_features, out_features, bias)
    name = "int8" if eight_bits and quantization.format == "int4" else quantization.format
    return _LAYERS[name](in_features, out_features, bias, quantization)


def make_projection(
    config: ModelConfig, layer: int, path: str, quantization: Quantization | None
) -> Linear:
    """The linear layer that a model declares at `path` within a layer."""
    declared = projection_at(config, f"layers.{layer}.{path}")
    if declared is None:
        raise ValueError(f"layer {layer} has no projection {path}")
    return make_linear(
        declared.columns,
        declared.rows,
        bias=declared.bias,
        quantization=quantization,
        eight_bits=quantization is not None and quantization.has_eight_bits(layer, path),
    )


def make_embedding(
    vocab_size: int, hidden_size: int, quantization: Quantization | None, *, bias: bool = False
) -> DenseEmbedding | Int8Embedding:
    """The embedding (and head) for `quantization`."""
    if quantization is None:
        return DenseEmbedding(vocab_size, hidden_size, bias=bias)
    rotation = _rotation(hidden_size, quantization)
    return Int8Embedding(vocab_size, hidden_size, rotation, bias=bias)
