"""Triton on the codes of files; on the CPU through Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from hagane.models.serving_layers import CudaLinear
from hagane.weights.load import load_model

from tests.support.gguf import dequantized, write_gguf
from tests.support.quantized import KINDS, write_quantized

grouped = pytest.importorskip("hagane.kernels.cuda.grouped")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def matrix(bits: int, group: int, minimum: bool, outputs: int, inputs: int, ordered: bool):
    """A random matrix, and the weights that it stands for in the order of the inputs."""
    generator = torch.Generator().manual_seed(bits + outputs)
    codes = torch.randint(0, 1 << bits, (outputs, inputs), generator=generator).to(torch.uint8)
    shape, zero = (outputs, inputs // group), 1 << (bits - 1)
    scale = (torch.rand(shape, generator=generator) * 0.1).half()
    lowest = torch.randn(shape, generator=generator).half() if minimum else None
    order = torch.randperm(inputs, generator=generator) if ordered else None
    weights = (codes.float() - zero).unflatten(1, (-1, group)) * scale.float()[:, :, None]
    if lowest is not None:
        weights += lowest.float()[:, :, None]
    weights = weights.flatten(1)
    if order is not None:
        weights = torch.empty_like(weights).index_copy_(1, order, weights)
    stored = grouped.pack_nibbles(codes) if bits == 4 else codes
    tensors = (t if t is None else t.to(DEVICE) for t in (stored, scale, lowest))
    order = None if order is None else order.to(DEVICE)
    return grouped.GroupedMatrix(*tensors, bits, group, zero, order), weights.to(DEVICE)


@pytest.mark.parametrize("rows", [1, 5, 70])
@pytest.mark.parametrize(
    ("bits", "group", "minimum", "ordered", "dtype"),
    [
        (4, 16, True, True, torch.bfloat16),
        (8, 32, False, False, torch.float32),
        pytest.param(4, 32, False, False, torch.bfloat16, marks=pytest.mark.slow),
        pytest.param(5, 32, True, False, torch.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_products_are_those_of_the_dequantized_weights(rows, bits, group, minimum, ordered, dtype):
    stored, weights = matrix(bits, group, minimum, 37, 96, ordered)
    generator = torch.Generator().manual_seed(rows)
    x, bias = (torch.randn(*s, generator=generator).to(DEVICE, dtype) for s in ((rows, 96), (37,)))
    residual = torch.randn(rows, 37, generator=generator).to(DEVICE, dtype)
    exact = x.double() @ weights.to(dtype).double().t() + bias.double() + residual.double()
    out = stored.multiply(x, bias, residual)
    assert out.dtype == dtype
    rounding = 4e-3 if dtype == torch.bfloat16 else 1e-5
    size = x.double().abs() @ weights.double().abs().t() + bias.abs() + residual.abs() + 1
    assert ((out.double() - exact).abs() <= 2 * rounding * size).all()
    plain = stored.multiply(x, None, None).double()
    assert ((plain + bias.double() + residual.double() - exact).abs() <= 2 * rounding * size).all()


def test_widened_weights_are_exact():
    stored, weights = matrix(4, 32, True, 5, 64, False)
    assert torch.equal(stored.widen(torch.float32), weights)


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_1", "gptq-ordered"])
def test_models_are_loaded_with_the_codes_of_their_files(tiny_model_dir, tmp_path, kind):
    cuda = pytest.importorskip("hagane.kernels.cuda")
    if kind in KINDS:
        path, values = tmp_path / "model", None
        values = write_quantized(tiny_model_dir, path, KINDS[kind])
    else:
        path = write_gguf(tiny_model_dir, tmp_path / "x.gguf", kind)
        values = dequantized(tiny_model_dir, kind)
    model, report = load_model(
        path, device=DEVICE, dtype=torch.bfloat16, quantization=None, operations=cuda
    )
    layer = model.model.layers[0].self_attn.qkv_proj
    assert isinstance(layer, CudaLinear) and layer.multiply.__self__.codes.dtype == torch.uint8
    names = [f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv"]
    weights = torch.cat([values[name] for name in names]).to(DEVICE)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1)).to(DEVICE, torch.bfloat16)
    expected = x.float() @ weights.float().t()
    assert (layer(x).float() - expected).norm() < 0.01 * expected.norm()
    assert report.bits_per_weight < 14
