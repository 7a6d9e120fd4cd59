"""Matrices of codes in groups, against products of the dequantized weights in float64."""

from __future__ import annotations

import pytest
import torch
from hagane.kernels import cpu
from hagane.kernels.cpu import extension
from torch import Tensor

from tests.support.paging import SETS

pytestmark = pytest.mark.skipif(not cpu.available(), reason="kernels not built")

# As of GGUF's types.
FORMS = {
    "Q4_0": cpu.GroupedForm(4, 32, 8, False),
    "Q4_1": cpu.GroupedForm(4, 32, 0, True),
    "Q5_0": cpu.GroupedForm(5, 32, 16, False),
    "Q5_1": cpu.GroupedForm(5, 32, 0, True),
    "Q6_K": cpu.GroupedForm(6, 16, 32, False),
    "Q8_0": cpu.GroupedForm(8, 32, 128, False),
    "Q2_K": cpu.GroupedForm(4, 16, 0, True),
    "mixed": cpu.GroupedForm(6, 16, 0, True),
}


@pytest.fixture(params=SETS)
def instruction_set(request):
    try:
        cpu.start(2, request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    cpu.start()


def make(form: str, out: int, inputs: int) -> tuple[cpu.PackedWeight, Tensor, Tensor]:
    """A random matrix, its weights [out, inputs] and its bias, both float64."""
    found = FORMS[form]
    bits, group, zero = found.bits, found.group, found.zero
    codes = torch.randint(0, 1 << bits, (out, inputs), dtype=torch.uint8)
    codes[0], codes[-1] = 0, (1 << bits) - 1
    scale = (torch.randn(out, inputs // group) * 0.02).half()
    scale[1] = 3e-7  # subnormal
    minimum = torch.randn(out, inputs // group).half() if found.has_minimum else None
    bias = torch.randn(out)
    cut = (out // 2) & ~15
    rows = [
        (codes[part], scale[part], None if minimum is None else minimum[part])
        for part in (slice(0, cut), slice(cut, out))
    ]
    packed = cpu.pack_grouped(rows, (out, inputs), found, bias)
    weights = (codes.double() - zero).unflatten(1, (-1, group)) * scale.double()[:, :, None]
    if minimum is not None:
        weights += minimum.double()[:, :, None]
    return packed, weights.flatten(1), bias.double()


def quantized(x: Tensor) -> Tensor:
    """x as the kernels see it: 8 bits and one scale per 32 inputs."""
    chunks = x.double().unflatten(1, (-1, 32))
    step = chunks.abs().amax(dim=2, keepdim=True) / 127
    return (chunks / step).round().nan_to_num().mul(step).flatten(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_products_equal_those_of_the_weights(instruction_set, form, dtype):
    torch.manual_seed(3)
    packed, weights, bias = make(form, 70, 192)
    for rows in (1, 2, 5, 17):
        x = torch.randn(rows, 192)
        x[:, 40] *= 100  # an outlier spoils its own 32 inputs alone
        x[-1, 64:96] = 0
        x = x.to(dtype)
        out = torch.empty(rows, 70, dtype=dtype)
        extension.linear(packed.handle, x, out, None, None, None)
        exact = quantized(x) @ weights.T + bias
        size = quantized(x).abs() @ weights.abs().T + 1
        allowed = 2e-6 if dtype == torch.float32 else 0.005
        # One code of a tie may be rounded the other way.
        assert ((out.double() - exact).abs() <= allowed * size + 0.01 * size / 127).all()
        assert ((out.double() - exact).abs() <= allowed * size).double().mean() > 0.98


@pytest.mark.parametrize("form", FORMS)
def test_a_row_does_not_depend_on_the_rows_next_to_it(instruction_set, form):
    packed, _, _ = make(form, 150, 256)
    x = torch.randn(29, 256)
    whole = torch.empty(29, 150)
    extension.linear(packed.handle, x, whole, None, None, None)
    for rows in (1, 3, 8):
        for start in range(0, 29, rows):
            part = x[start : start + rows].contiguous()
            out = torch.empty(len(part), 150)
            extension.linear(packed.handle, part, out, None, None, None)
            assert torch.equal(out, whole[start : start + rows])


@pytest.mark.parametrize("form", FORMS)
def test_embeddings_are_the_weights(instruction_set, form):
    packed, weights, _ = make(form, 40, 96)
    ids = torch.tensor([0, 39, 17, 1, 16])
    out = torch.empty(5, 96)
    extension.embed(packed.handle, ids, out)
    torch.testing.assert_close(out.double(), weights[ids], rtol=2e-7, atol=1e-9)


def test_matrices_that_do_not_fit_are_refused():
    for bits, group, inputs, message in (
        (4, 16, 48, "multiple of 32"),
        (7, 32, 64, "bits must be"),
        (4, 64, 64, "group must be"),
    ):
        codes = torch.zeros(16, inputs, dtype=torch.uint8)
        rows = [(codes, torch.ones(16, inputs // group).half(), None)]
        with pytest.raises(ValueError, match=message):
            cpu.pack_grouped(rows, (16, inputs), cpu.GroupedForm(bits, group, 8, False))
