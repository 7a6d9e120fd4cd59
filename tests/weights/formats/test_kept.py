"""Checkpoints of other programs, served with the bits that they have."""

from __future__ import annotations

import json

import pytest
import torch
from hagane.kernels import cpu
from hagane.kernels.arena import Arena
from hagane.kernels.cpu.low_rank import NativeBank
from hagane.kernels.low_rank import Part
from hagane.models.attention import PackedCausal
from hagane.models.serving_layers import Packed
from hagane.weights.formats.kept import pack_kept
from hagane.weights.load import load_model
from hagane.weights.opening import open_weights
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.support.quantized import KINDS, write_quantized

pytestmark = pytest.mark.skipif(not cpu.available(), reason="kernels not built")
DOWN = "model.layers.1.mlp.down_proj.weight"
# float16 rounds what a zero point takes off; inputs have 8 bits.
PACKED = {kind: 0.01 for kind in KINDS if not kind.startswith("fp8")} | {"w8a8": 0.015}
IDS = torch.arange(3, 60) % 300


def distance(got, expected):
    return float((got.float() - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", PACKED)
def test_products_are_those_of_the_dequantized_weights(tiny_model_dir, tmp_path, kind):
    values = write_quantized(tiny_model_dir, tmp_path / "model", KINDS[kind])
    _, source = open_weights(tmp_path / "model")
    names = [f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv"]
    for parts in (names, [DOWN]):
        expected = torch.cat([values[name] for name in parts])
        rows = {name: source.read(name, tuple(values[name].shape)) for name in parts}
        bias = torch.randn(len(expected), generator=torch.Generator().manual_seed(2))
        packed = pack_kept(tmp_path, rows, bias)
        assert packed is not None
        x = torch.randn(5, expected.shape[1], generator=torch.Generator().manual_seed(1))
        out = cpu.linear(x, packed)
        assert distance(out, x @ expected.T + bias) < PACKED[kind]
        # A row's bits depend on its own inputs alone.
        assert torch.equal(cpu.linear(x[2:3], packed), out[2:3])


def test_the_bits_are_kept(tiny_model_dir, tmp_path):
    write_quantized(tiny_model_dir, tmp_path / "model", KINDS["gptq-ordered"])
    model, _ = load_model(
        tmp_path / "model", device="cpu", dtype=torch.bfloat16, quantization=None, operations=cpu
    )
    down = model.model.layers[1].mlp.down_proj
    assert isinstance(down, Packed)
    # 4 bits, a float16 scale for 32 of them, and the order of the inputs.
    assert down.weight.nbytes == 64 * 128 // 2 + 64 * 4 * 2 + 128 * 4


def test_parts_that_order_their_inputs_differently_are_dequantized(tiny_model_dir, tmp_path):
    values = write_quantized(tiny_model_dir, tmp_path / "model", KINDS["gptq-ordered"])
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.self_attn.k_proj.g_idx"] = (torch.arange(64) // 32).int()
    save_file(tensors, path)
    _, source = open_weights(tmp_path / "model")
    names = [f"model.layers.0.self_attn.{part}_proj.weight" for part in "qk"]
    rows = {name: source.read(name, tuple(values[name].shape)) for name in names}
    assert pack_kept(tmp_path, rows, None) is None


def test_adapters_take_their_inputs_as_they_are(tiny_model_dir, tmp_path):
    values = write_quantized(tiny_model_dir, tmp_path / "model", KINDS["gptq-ordered"])
    _, source = open_weights(tmp_path / "model")
    packed = pack_kept(tmp_path, {DOWN: source.read(DOWN, (64, 128))}, None)
    assert packed is not None
    generator = torch.Generator().manual_seed(3)
    x, a, b = (torch.randn(*size, generator=generator) for size in ((3, 128), (4, 128), (64, 4)))
    bank = NativeBank(packed)
    parts = [Part(0, a, b, 0.5)]
    bank.place(0, bank.pack(parts, Arena(Arena.room(bank.size(parts), 8))))
    out = cpu.linear(x, packed, changes=(bank.handle, torch.tensor([0, -1, 0], dtype=torch.int32)))
    expected = x @ values[DOWN].T
    expected[[0, 2]] += 0.5 * (x @ a.T @ b.T)[[0, 2]]
    assert distance(out, expected) < 0.02


@pytest.fixture(scope="module", params=["gptq-ordered", "awq", "w8a8", "fp8-blocks"])
def pair(request, tiny_model_dir, tmp_path_factory):
    """A quantized directory, and transformers' model on its dequantized weights."""
    root = tmp_path_factory.mktemp("pair")
    values = write_quantized(tiny_model_dir, root / "model", KINDS[request.param])
    plain = root / "plain"
    plain.mkdir()
    config = json.loads((tiny_model_dir / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps(config))
    save_file({n: t.contiguous() for n, t in values.items()}, plain / "model.safetensors")
    return root / "model", AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)


def logits(model):
    with torch.no_grad():
        return model.logits(model(IDS, PackedCausal(rows=1, length=len(IDS))))


def test_logits_in_float32_are_those_of_transformers(pair):
    directory, theirs = pair
    model, _ = load_model(directory, device="cpu", dtype=torch.float32, quantization=None)
    with torch.no_grad():
        expected = theirs(IDS[None]).logits[0]
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-4)
