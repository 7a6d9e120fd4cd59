"""MXFP4: which scales kernels have a form for."""

from __future__ import annotations

import pytest
import torch
from hagane.weights.sources.mxfp4 import Mxfp4Matrix


@pytest.mark.parametrize(
    ("exponent", "kept"), [(103, False), (104, True), (143, True), (144, False)]
)
def test_kernels_read_the_scales_that_float16_has(exponent, kept):
    exponents = torch.full((3, 2), 120, dtype=torch.uint8)
    exponents[1, 1] = exponent
    matrix = Mxfp4Matrix(torch.full((3, 2, 16), 0x71, dtype=torch.uint8), exponents)
    assert (matrix.form is not None) == kept
    rows = torch.cat(list(matrix.split(2)))
    assert rows.shape == matrix.shape == (3, 64)
    # The lower bits come first: 0.5, then 6.
    expected = torch.tensor([0.5, 6.0]).repeat(16) * 2.0 ** (exponent - 127)
    assert torch.equal(rows[1, 32:], expected)
    scale = matrix.groups(1, 2).scale[0, 1]
    assert (scale.half().float() == scale).item() == kept


def test_scales_of_zeros_do_not_matter():
    blocks = torch.full((3, 2, 16), 0x71, dtype=torch.uint8)
    exponents = torch.full((3, 2), 120, dtype=torch.uint8)
    blocks[1, 1], exponents[1, 1] = 0x80, 0
    blocks[2, 0], exponents[2, 0] = 0x00, 255
    matrix = Mxfp4Matrix(blocks, exponents)
    assert matrix.form is not None
    groups = matrix.groups(1, 3)
    assert groups.scale.half().isfinite().all()
    assert not groups.dequantize()[0, 32:].any() and not groups.dequantize()[1, :32].any()
    assert Mxfp4Matrix(blocks, exponents, kept=False).form is None
