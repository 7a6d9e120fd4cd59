"""The Triton linear layers against float64; on the CPU through Triton's interpreter."""

from __future__ import annotations

import math

import pytest
import torch
from hagane.models.formats.fp8 import Fp8
from hagane.models.formats.int4 import Int4, unpack_int4
from hagane.models.formats.int8 import quantize_int8
from hypothesis import given, settings
from hypothesis import strategies as st

linear = pytest.importorskip("hagane.kernels.cuda.linear")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def stored(kind: str, weight: torch.Tensor, group: int):
    """The stored tensors and what they stand for, in float64."""
    if kind == "dense":
        return (weight,), weight.double()
    if kind == "int8":
        codes, scale = quantize_int8(weight).values()
        return (codes, scale), codes.double() * scale.double()[:, None]
    if kind == "fp8":
        codes, scale = Fp8(weight.shape[1], len(weight), False).quantize(weight).values()
        return (codes, scale), codes.double() * scale.double()[:, None]
    codes, scale = Int4(weight.shape[1], len(weight), False, group).quantize(weight).values()
    whole = (unpack_int4(codes).double() - 8).unflatten(1, (-1, group))
    return (codes, scale), (whole * scale.double()[:, :, None]).flatten(1)


def narrowed(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Inputs of many rows as the kernels quantize them, in float64; right to half a step."""
    codes, scale = linear.quantize_rows(x, dtype)
    seen, factor = codes.double() * scale.double()[:, None], scale[:, None]
    step = factor if dtype == torch.int8 else torch.maximum(x.double().abs() / 8, factor / 512)
    assert ((seen - x.double()).abs() <= 0.501 * step).all()
    return seen


@pytest.mark.parametrize("kind", ["dense", "int8", "int4", "fp8"])
@settings(max_examples=8, deadline=None)
@given(
    rows=st.sampled_from([1, 1, 2, 17, 64, 70]),
    outputs=st.sampled_from([1, 15, 32]),
    groups=st.integers(1, 5),
    group=st.sampled_from([32, 64, 128]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    bias=st.booleans(),
    residual=st.booleans(),
)
def test_linear(kind, rows, outputs, groups, group, dtype, bias, residual):
    torch.manual_seed(rows * outputs + groups)
    inputs = groups * group
    weight = torch.randn(outputs, inputs, device=DEVICE).to(dtype)
    tensors, exact = stored(kind, weight, group)
    x = torch.randn(rows, inputs, device=DEVICE).to(dtype)
    extra = torch.randn(outputs, device=DEVICE).to(dtype) if bias else None
    base = torch.randn(rows, outputs, device=DEVICE).to(dtype) if residual else None
    result = getattr(linear, kind)(x, *tensors, extra, base)
    assert result.dtype == dtype
    seen = x
    narrow = torch.float8_e4m3fn if kind == "fp8" and outputs % 16 == 0 else torch.int8
    if rows > 64 and (kind == "int8" or narrow != torch.int8):
        codes, scale = linear.quantize_rows(x, narrow)
        seen = codes.double() * scale.double()[:, None]
        step = (
            x.double().abs() / 16 + scale[:, None] / 512
            if narrow != torch.int8
            else 0.501 * scale[:, None]
        )
        assert ((seen - x.double()).abs() <= step).all()
    expected = seen.double() @ exact.T
    if extra is not None:
        expected += extra.double()
    if base is not None:
        expected += base.double()
    size = seen.double().abs() @ exact.abs().T + 8
    rounding = torch.finfo(dtype).eps
    if kind == "fp8" and rows > 64:
        rounding = torch.finfo(torch.bfloat16).eps  # of the product
    slack = 1e-6 * math.sqrt(inputs) * size + 2 * rounding * (expected.abs() + 1)
    if kind in ("int4", "fp8") and rows > 64:
        slack += rounding * size  # widened weights are rounded to the dtype
    assert ((result.double() - expected).abs() <= slack).all()


def test_logits_are_float32_for_any_number_of_rows():
    weight = torch.randn(40, 32, device=DEVICE).to(torch.bfloat16)
    codes, scale = quantize_int8(weight).values()
    for rows in (1, 3, 65):
        x = torch.randn(rows, 32, device=DEVICE).to(torch.bfloat16)
        assert linear.dense(x, weight, dtype=torch.float32).dtype == torch.float32
        assert linear.int8(x, codes, scale, dtype=torch.float32).dtype == torch.float32


def test_widened_int4_is_the_stored_matrix():
    torch.manual_seed(0)
    layer = Int4(192, 10, False, 64)
    (codes, scale), exact = stored("int4", torch.randn(10, 192), 64)
    layer.weight_int4, layer.scale = codes, scale
    ours = linear.widen_int4(codes.to(DEVICE), scale.to(DEVICE), torch.float32)
    assert torch.equal(ours.cpu().double(), exact)
    assert torch.equal(ours.cpu(), layer.matrix(torch.float32))


def test_rows_of_zeros_and_broken_rows_spoil_no_other():
    torch.manual_seed(1)
    codes, scale = quantize_int8(torch.randn(32, 64, device=DEVICE)).values()
    x = torch.randn(70, 64, device=DEVICE)
    x[3] = 0
    clean = linear.int8(x, codes, scale)
    assert (clean[3] == 0).all()
    x[7, 5] = math.nan
    spoiled = linear.int8(x, codes, scale)
    assert not spoiled[7].isfinite().any()
    keep = torch.arange(70, device=DEVICE) != 7
    assert torch.equal(spoiled[keep], clean[keep])
