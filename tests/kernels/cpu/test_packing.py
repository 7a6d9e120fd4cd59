"""Quantizing and packing natively, against the quantizers in torch."""

from __future__ import annotations

import pytest
import torch
from hagane.kernels import cpu
from hagane.kernels.cpu import extension
from hagane.models.formats.int4 import Int4
from hagane.models.formats.int8 import Int8, quantize_int8

from tests.support.paging import SETS

pytestmark = pytest.mark.skipif(not cpu.available(), reason="kernels not built")


@pytest.fixture(params=SETS)
def instruction_set(request):
    try:
        cpu.start(2, request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    cpu.start()


def parts_of(rows: list[int], inputs: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Weights of several sizes; among them zeros, equal magnitudes, and rows of the tiniest."""
    torch.manual_seed(inputs)
    parts = [(torch.randn(count, inputs) * torch.rand(count, 1)).to(dtype) for count in rows]
    parts[0][0] = 0
    parts[0][1] = 0.5 * torch.sign(parts[0][1])
    parts[-1][-1] *= 1e-30
    return parts


@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inputs", [64, 131])
def test_int8_equals_the_quantizer_in_torch(instruction_set, source, dtype, inputs):
    parts = parts_of([37, 16, 5], inputs, source)
    codes, scale = cpu.quantize(parts, dtype, 0)
    expected = quantize_int8(torch.cat([part.to(dtype) for part in parts]))
    assert torch.equal(codes, expected["weight_int8"])
    assert torch.equal(scale, expected["scale"])
    packed = cpu.pack_quantized(parts, dtype, 0)
    for ours, theirs in zip(packed.tensors, cpu.pack_int8(codes, scale).tensors, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("rotation", [0, 32, 128])
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_int4_equals_the_quantizer_in_torch(instruction_set, source, group, rotation):
    parts = parts_of([150, 21], 6 * 128, source)
    codes, scale = cpu.quantize(parts, torch.bfloat16, group, rotation)
    layer = Int4(6 * 128, 171, False, group, rotation)
    expected = layer.quantize(torch.cat([part.to(torch.bfloat16) for part in parts]))
    # Two scales may serve a group equally well; torch's sums have another order on other machines.
    same = scale == expected["scale"]
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        assert same.all()
    assert same.float().mean() > 0.999
    whole = same.repeat_interleave(group // 2, dim=1)
    assert torch.equal(codes[whole], expected["weight_int4"][whole])
    packed = cpu.pack_quantized(parts, torch.bfloat16, group, rotation=rotation)
    stored = cpu.pack_int4(codes, scale, group, rotation=rotation)
    for ours, theirs in zip(packed.tensors, stored.tensors, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rotation", [1, 2, 8, 16, 64, 128])
def test_rotated_int8_equals_the_quantizer_in_torch(instruction_set, dtype, rotation):
    parts = parts_of([37, 16, 5], 384, dtype)
    parts[0][:, 5] *= 30
    codes, scale = cpu.quantize(parts, dtype, 0, rotation)
    expected = Int8(384, 58, False, rotation).quantize(torch.cat(parts))
    assert torch.equal(codes, expected["weight_int8"])
    assert torch.equal(scale, expected["scale"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("group", [0, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_row_that_is_not_finite_is_named(value, group, dtype):
    parts = [torch.randn(40, 64).to(dtype), torch.randn(60, 64).to(dtype)]
    parts[1][33, 7] = parts[1][50, 0] = value
    for reader in (cpu.quantize, cpu.pack_quantized):
        with pytest.raises(cpu.NonFiniteError) as caught:
            reader(parts, torch.bfloat16, group)
        assert caught.value.row == 73
    assert cpu.find_nonfinite(parts[0]) == -1
    assert cpu.find_nonfinite(parts[1]) == 33


def test_arguments_that_do_not_fit_run_nothing():
    x, out, weight = torch.randn(3, 16), torch.zeros(3, 16), torch.ones(16)
    with pytest.raises(ValueError, match="weight must be in one piece, of 16 elements"):
        extension.row_norm(x, out, weight[:15], None, None, 0.0, 0.0, centered=False)
    with pytest.raises(TypeError, match="weight is float64, not float32"):
        extension.row_norm(x, out, weight.double(), None, None, 0.0, 0.0, centered=False)
    with pytest.raises(TypeError, match="x is not float32, bfloat16 or int8"):
        extension.row_norm(x.double(), out, weight, None, None, 0.0, 0.0, centered=False)
    with pytest.raises(ValueError, match="x and out"):
        extension.row_norm(x, out[:2], weight, None, None, 0.0, 0.0, centered=False)
    with pytest.raises(ValueError, match="each row of x"):
        across = x.t().contiguous().t()
        extension.row_norm(across, out, weight, None, None, 0.0, 0.0, centered=False)
    packed = cpu.pack_int8(*quantize_int8(torch.randn(16, 8)).values())
    with pytest.raises(ValueError, match="x and out, or the weight"):
        extension.linear(packed.handle, x, out, None, None, None)
    assert not out.any()


def test_layers_quantize_as_before():
    layer = Int8(64, 16, False)
    weight = torch.randn(16, 64)
    for ours, theirs in zip(
        cpu.quantize([weight], torch.float32, 0), layer.quantize(weight).values(), strict=True
    ):
        assert torch.equal(ours, theirs)
