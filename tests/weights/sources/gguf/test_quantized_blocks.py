"""Decoded blocks compared with the `gguf` package's own dequantization, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from hagane.weights.sources.gguf.quantized_blocks import DECODERS
from hagane.weights.sources.gguf.types import TYPES, UNREAD_TYPES


@pytest.mark.parametrize("name", DECODERS)
def test_dequantized_values_are_the_packages_bit_for_bit(name):
    kind = next(kind for kind in TYPES.values() if kind.name == name)
    # Random bytes hold every code, and scales that are infinite, NaN, zero and subnormal.
    raw = np.random.default_rng(0).integers(0, 256, (2000, kind.size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(raw, GGMLQuantizationType[name])
    got = DECODERS[name](torch.from_numpy(raw)).dequantize().numpy()
    assert got.dtype == np.float32
    numbers = ~np.isnan(expected)
    assert np.array_equal(np.isnan(got), ~numbers)
    assert np.array_equal(got.view(np.int32)[numbers], expected.view(np.int32)[numbers])


def test_sizes_are_the_packages():
    for code, kind in TYPES.items():
        known = GGMLQuantizationType(code)
        assert known.name == kind.name
        assert GGML_QUANT_SIZES[known] == (kind.block, kind.size)
    assert {int(known): known.name for known in GGMLQuantizationType} == {
        **{code: kind.name for code, kind in TYPES.items()},
        **UNREAD_TYPES,
    }
