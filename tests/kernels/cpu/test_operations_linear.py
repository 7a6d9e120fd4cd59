"""Matrix products and embeddings against float64, for every instruction set of this machine."""

from __future__ import annotations

import math

import pytest
import torch
from hagane.kernels import cpu, reference
from hagane.kernels.layout import PagedLayout
from hagane.models.config import Quantization
from hagane.models.formats.dense import Dense
from hagane.models.formats.int4 import Int4, unpack_int4
from hagane.models.formats.int8 import Int8, Int8Embedding, quantize_int8
from hagane.models.linear import make_embedding, make_linear
from hagane.models.serving_layers import for_serving
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.paging import SETS

pytestmark = [
    pytest.mark.skipif(not cpu.available(), reason="kernels not built"),
    pytest.mark.usefixtures("instruction_set"),
]
DTYPES = (torch.float32, torch.bfloat16)


def make(kind: str, out: int, inputs: int, group: int, dtype: torch.dtype, bias: bool):
    """A layer in its stored form and its weights as float64."""
    weight = torch.randn(out, inputs) * torch.rand(out, 1)
    if kind == "dense":
        layer = Dense(inputs, out, bias)
        layer.weight.data = weight.to(dtype)
        exact = layer.weight.double()
    else:
        layer = Int8(inputs, out, bias) if kind == "int8" else Int4(inputs, out, bias, group)
        for name, tensor in layer.quantize(weight).items():
            setattr(layer, name, tensor)
        if kind == "int8":
            exact = layer.weight_int8.double() * layer.scale.double()[:, None]
        else:
            codes = unpack_int4(layer.weight_int4).double() - 8
            exact = (codes.unflatten(1, (-1, group)) * layer.scale.double()[:, :, None]).flatten(1)
    if bias:
        layer.bias.data = torch.randn(out).to(dtype)
    return layer, exact.detach()


def as_kernel_sees(x: torch.Tensor, kind: str) -> torch.Tensor:
    """x with its activations quantized per token."""
    wide = x.float()
    if kind == "dense":
        return wide.double()
    top = wide.abs().amax(1, keepdim=True)
    inverse = torch.where(top > 1e-30, 127 / top, 0.0)
    return ((wide * inverse).round().double()) * (top / 127).double()


@pytest.mark.parametrize("kind", ["dense", "int8", "int4"])
@settings(max_examples=40, deadline=None)
@given(
    rows=st.sampled_from([1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 50]),
    out=st.sampled_from([1, 15, 16, 17, 48, 100]),
    units=st.integers(1, 6),
    group=st.sampled_from([32, 64, 128]),
    odd=st.integers(0, 30),
    dtype=st.sampled_from(DTYPES),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_linear(kind, rows, out, units, group, odd, dtype, bias, seed):
    torch.manual_seed(seed)
    inputs = units * group if kind == "int4" else units * 32 + odd + 1
    layer, exact = make(kind, out, inputs, group, dtype, bias)
    packed = for_serving(layer, cpu, dtype)
    x = torch.randn(rows, inputs + 3).to(dtype)[:, :inputs]  # rows that are not contiguous
    result = cpu.linear(x, packed.weight, torch.float32)
    expected = as_kernel_sees(x, kind) @ exact.T
    if bias:
        expected += layer.bias.double()
    slack = 1e-6 * math.sqrt(inputs) * (as_kernel_sees(x, kind).abs() @ exact.abs().T) + 1e-6
    if kind != "dense":
        # Activations on the edge between two codes may fall either way.
        step = x.double().abs().amax(1, keepdim=True) / 127
        edges = ((x.double() / step).remainder(1) - 0.5).abs() < 1e-4
        slack += edges.sum(1, keepdim=True) * step * exact.abs().amax(1)
    assert ((result - expected).abs() <= slack).all()
    residual = torch.randn(rows, out)
    added = cpu.linear(x, packed.weight, torch.float32, residual)
    torch.testing.assert_close(added, result + residual, atol=1e-6, rtol=1e-6)
    for row in range(rows):
        alone = cpu.linear(x[row : row + 1], packed.weight, torch.float32)
        assert torch.equal(alone[0], result[row])


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("inputs", [32, 96, 128, 896])
@pytest.mark.parametrize("dtype", DTYPES)
def test_outliers_cost_little_behind_a_rotation(kind, inputs, dtype):
    torch.manual_seed(inputs)
    quantization = Quantization(kind, 32, rotated=True)
    layer = make_linear(inputs, 40, bias=True, quantization=quantization)
    for name, tensor in layer.quantize(torch.randn(40, inputs)).items():
        setattr(layer, name, tensor)
    layer.bias.data = torch.randn(40).to(dtype)
    packed = for_serving(layer, cpu, dtype)
    x = torch.randn(19, inputs).to(dtype)
    x[:, 7] *= 60
    weight = layer.matrix(torch.float64)
    result = cpu.linear(x, packed.weight, torch.float32)
    expected = x.double() @ weight.T + layer.bias.double()
    step = (reference.hadamard(x.float(), layer.rotation).abs().amax(1) / 127).double()
    # Rounding errors of inputs are independent and a step wide: twice their size is chance.
    error = (result - expected).square().mean(1).sqrt()
    assert (error <= 2 * step / math.sqrt(12) * weight.square().sum(1).mean().sqrt()).all()
    for row in range(len(x)):
        assert torch.equal(
            cpu.linear(x[row : row + 1], packed.weight, torch.float32)[0], result[row]
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_rotated_embeddings_are_rotated_back(dtype):
    torch.manual_seed(5)
    weight = torch.randn(50, 96)
    layer = make_embedding(50, 96, Quantization("int8", rotated=True))
    for name, tensor in layer.quantize(weight).items():
        setattr(layer, name, tensor)
    layer.dtype = dtype
    ids = torch.tensor([0, 49, 17, 17])
    rows = for_serving(layer, cpu, dtype)(ids)
    torch.testing.assert_close(rows, layer(ids), atol=1e-5, rtol=1e-2)
    torch.testing.assert_close(rows.float(), weight[ids], atol=0.06, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_embeddings_are_the_rows_of_their_matrix(dtype):
    torch.manual_seed(5)
    weight = torch.randn(50, 40).to(dtype)
    ids = torch.tensor([0, 49, 17, 17])
    assert torch.equal(cpu.embed(ids, cpu.pack_dense(weight), dtype), weight[ids])
    stored = quantize_int8(weight)
    layer = Int8Embedding(50, 40)
    layer.weight_int8, layer.scale, layer.dtype = stored["weight_int8"], stored["scale"], dtype
    assert torch.equal(for_serving(layer, cpu, dtype)(ids), layer(ids))


def test_integer_results_are_the_same_on_every_instruction_set(instruction_set):
    torch.manual_seed(1)
    layers = [make(kind, 70, 256, 64, torch.float32, False)[0] for kind in ("int8", "int4")]
    x = torch.randn(9, 256)
    packed = [for_serving(layer, cpu, torch.float32) for layer in layers]
    here = [layer(x) for layer in packed]
    # The generic set rounds sums of groups in another way.
    cpu.start(1, SETS[1] if instruction_set != "generic" else "generic")
    there = [layer(x) for layer in packed]
    cpu.start(2, instruction_set)
    for left, right in zip(here, there, strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("kind", ["dense", "int8", "int4"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_a_number_spoils_no_other(kind, bad):
    torch.manual_seed(2)
    layer, _ = make(kind, 32, 128, 64, torch.float32, False)
    packed = for_serving(layer, cpu, torch.float32)
    x = torch.randn(20, 128)
    clean = packed(x)
    x[7, 5] = bad
    spoiled = packed(x)
    assert not spoiled[7].isfinite().any()
    keep = torch.arange(20) != 7
    assert torch.equal(spoiled[keep], clean[keep])


def test_zero_and_huge_activations():
    layer, exact = make("int4", 16, 64, 64, torch.float32, False)
    packed = for_serving(layer, cpu, torch.float32)
    x = torch.stack((torch.zeros(64), torch.full((64,), 1e30), torch.full((64,), 1e-38)))
    result = packed(x)
    assert (result[0] == 0).all()
    torch.testing.assert_close(result[1].double(), x[1].double() @ exact.T, rtol=1e-3, atol=0)
    assert (result[2].abs() < 1e-30).all()


@pytest.mark.parametrize("kind", ["dense", "int8", "int4"])
def test_fetching_a_cache_meanwhile_changes_no_product(kind):
    layer, _ = make(kind, 80, 128, 64, torch.bfloat16, False)
    packed = for_serving(layer, cpu, torch.bfloat16)
    x = torch.randn(50, 128).bfloat16()
    expected = packed(x)
    layout = PagedLayout(
        slots=torch.arange(3),
        block_tables=torch.tensor([[0, 1], [2, 0], [3, 4]], dtype=torch.int32),
        starts=torch.arange(4, dtype=torch.int32),
        lengths=torch.tensor([20, 3, 32], dtype=torch.int32),
        query_starts=(0, 1, 2, 3),
        context_lengths=(20, 3, 32),
        decodes=3,
        block_size=16,
    )
    for dtype in (torch.bfloat16, torch.int8):
        cache = cpu.allocate_cache(5, 16, 2, 32, dtype, torch.device("cpu"))
        cpu.prefetch(cache, layout, 2, 32)
        for _ in range(3):
            assert torch.equal(packed(x), expected)
