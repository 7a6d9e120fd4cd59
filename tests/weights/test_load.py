"""Loading, quantizing and saving weights."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hagane.kernels import cpu, reference
from hagane.models.attention import PackedCausal
from hagane.models.config import Quantization
from hagane.models.decoder import Transformer
from hagane.models.families import read_config, read_config_file
from hagane.models.formats.fp8 import Fp8
from hagane.models.formats.int4 import Int4, unpack_int4
from hagane.models.formats.layer import rotated
from hagane.models.linear import make_linear
from hagane.models.serving_layers import for_serving
from hagane.system.errors import ConfigurationError, ModelError
from hagane.weights.load import load_model, save_model
from hagane.weights.quantize import quantize_directory
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

CONFIG = read_config(
    {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 200,
        "hidden_size": 128,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }
)
IDS = torch.arange(40) % 200


def logits(model: Transformer) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model(IDS, PackedCausal(rows=1, length=40)))


def load(directory: Path, quantization: Quantization | None = None) -> Transformer:
    return load_model(directory, device="cpu", dtype=torch.float32, quantization=quantization)[0]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    model = Transformer(CONFIG)
    model.init_weights(torch.Generator().manual_seed(1))
    save_model(model, tmp_path / "model", dtype=torch.float32)
    return tmp_path / "model"


def test_transformers_reads_what_is_saved(directory):
    theirs = AutoModelForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        expected = theirs(IDS[None]).logits[0]
    torch.testing.assert_close(logits(load(directory)), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "quantization",
    [
        Quantization("int8"),
        Quantization("int8", rotated=True),
        Quantization("int4", 32),
        Quantization("int4", 64, rotated=True),
        Quantization("fp8"),
    ],
)
def test_quantized_products_equal_dequantized_ones(rows, dtype, quantization):
    weight = torch.randn(80, 192).to(dtype)
    x = torch.randn(rows, 192).to(dtype)
    layer = make_linear(192, 80, bias=False, quantization=quantization)
    for name, tensor in layer.quantize(weight).items():
        setattr(layer, name, tensor)
    product = x.double() @ dequantized(layer).T
    tolerance = {torch.float32: 4e-3, torch.float16: 4e-3, torch.bfloat16: 1.2e-2}[dtype]
    for serving in (layer, for_serving(layer, reference, dtype)):
        error = (serving(x).double() - product).abs().max() / product.abs().max()
        assert error < tolerance


def dequantized(layer) -> torch.Tensor:
    if isinstance(layer, Int4):
        codes = unpack_int4(layer.weight_int4).double() - 8
        groups = codes.unflatten(1, (-1, layer.group_size)) * layer.scale.double()[:, :, None]
        return rotated(groups.flatten(1), layer.rotation)
    codes = layer.weight_fp8 if isinstance(layer, Fp8) else layer.weight_int8
    weight = codes.double() * layer.scale.double()[:, None]
    return rotated(weight, getattr(layer, "rotation", 0))


def test_int4_scales_beat_scales_by_maximum():
    weight = torch.randn(64, 256)
    layer = Int4(256, 64, bias=False, group_size=64)
    for name, tensor in layer.quantize(weight).items():
        setattr(layer, name, tensor)
    ours = (dequantized(layer) - weight).square().mean()
    plain_groups = weight.unflatten(1, (-1, 64))
    scale = plain_groups.abs().amax(2, keepdim=True) / 7
    plain = ((plain_groups / scale).round().clamp(-8, 7) * scale - plain_groups).square().mean()
    assert ours < 0.95 * plain


@pytest.mark.parametrize(
    "quantization",
    [Quantization("int8", rotated=True), Quantization("int4", 32), Quantization("fp8")],
)
def test_quantized_directory_gives_the_logits_of_quantizing_at_load(
    directory, tmp_path, quantization
):
    report = quantize_directory(directory, tmp_path / "small", quantization)
    stored = read_config_file(tmp_path / "small").quantization
    assert stored == report.quantization
    if quantization.format != "fp8":
        raw = json.loads((tmp_path / "small" / "config.json").read_text())
        bits = int(raw["quantization_config"].pop("format")[-1])
        raw["quantization_config"]["bits"] = bits
        assert read_config(raw).quantization == stored
    assert report.bits_per_weight < 11
    again = logits(load(tmp_path / "small", stored))
    assert torch.equal(again, logits(load(directory, quantization)))
    with pytest.raises(ConfigurationError, match="not empty"):
        quantize_directory(directory, tmp_path / "small", quantization)
    with pytest.raises(ConfigurationError, match=f"quantized to {quantization.format}"):
        quantize_directory(tmp_path / "small", tmp_path / "smaller", quantization)


def test_sharded_checkpoints_load(directory):
    expected = logits(load(directory))
    tensors = load_file(directory / "model.safetensors")
    names = sorted(tensors)
    shards = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    index = {}
    for shard, part in shards.items():
        save_file({name: tensors[name] for name in part}, directory / shard)
        index |= dict.fromkeys(part, shard)
    (directory / "model.safetensors").unlink()
    index_file = directory / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"weight_map": index}))
    assert torch.equal(logits(load(directory)), expected)
    index_file.write_text(json.dumps({"weight_map": index | {names[0]: "../a.safetensors"}}))
    with pytest.raises(ModelError, match="plain file name"):
        load(directory)
    index_file.write_text(json.dumps({"weight_map": index | {names[0]: "c.safetensors"}}))
    with pytest.raises(ModelError, match=r"c\.safetensors"):
        load(directory)


def test_wrong_tensors_are_named(directory):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.1.self_attn.k_proj.weight"
    for change, message in [
        ({name: None}, f"{name} is missing"),
        ({name: torch.zeros(3, 128)}, rf"{name} has shape \[3, 128\]"),
        ({"model.extra": torch.zeros(3)}, "model.extra is unexpected"),
    ]:
        changed = {k: v for k, v in (tensors | change).items() if v is not None}
        save_file(changed, path)
        with pytest.raises(ModelError, match=message):
            load(directory)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match="truncated"):
        load(directory)
    shutil.move(path, directory / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickle"):
        load(directory)


MEASURE_LOADING = """
import sys
from pathlib import Path
import psutil, torch
from hagane.kernels import cpu, reference
from hagane.kernels.backend import choose
from hagane.models.config import Quantization
from hagane.weights.load import load_model

def load(directory, name):
    return load_model(
        directory, device="cpu", dtype=torch.bfloat16,
        quantization=None if name == "none" else Quantization(name),
        operations=choose(torch.device("cpu"), torch.bfloat16),
    )

name = sys.argv[1]
load(Path(sys.argv[2]), name)  # what the libraries set up at their first use is not the model's
Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
before = psutil.Process().memory_info().rss
model, report = load(Path(sys.argv[3]), name)
status = Path("/proc/self/status").read_text()
peak = 1024 * int(status.split("VmHWM:")[1].split()[0])
print((peak - before) / report.weight_bytes, report.weight_bytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ["none", "int8", "int4"])
def test_loading_needs_little_more_memory_than_the_model(tmp_path, name):
    for layers in (1, 12):
        config = LlamaConfig(
            vocab_size=4096, hidden_size=768, intermediate_size=2048, num_hidden_layers=layers,
            num_attention_heads=12, num_key_value_heads=12, tie_word_embeddings=True,
        )  # fmt: skip
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / str(layers))
    command = [
        sys.executable,
        "-c",
        MEASURE_LOADING,
        name,
        *map(str, sorted(tmp_path.iterdir())),
    ]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    ratio, size = map(float, output.split())
    largest = 4096 * 768 * 2
    print(ratio)
    assert ratio < 1.3 + largest / size


@pytest.mark.parametrize("operations", [None, reference, cpu])
@pytest.mark.parametrize("form", [None, "int8", "int4", "fp8"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.self_attn.v_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
        "model.embed_tokens.weight",
        "model.norm.weight",
    ],
)
def test_weights_that_are_no_numbers_are_refused_by_name(directory, operations, form, value, name):
    tensors = load_file(directory / "model.safetensors")
    tensors[name][3, ...].view(-1)[-1] = value
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    quantization = None if form is None else Quantization(form, 32, rotated=form != "fp8")
    with pytest.raises(ModelError, match=f"tensor {name} holds NaN or an infinity in row 3"):
        load_model(
            directory, device="cpu", dtype=torch.bfloat16, quantization=quantization,
            operations=operations,
        )  # fmt: skip


@pytest.mark.parametrize("form", ["int8", "int4", "fp8"])
def test_scales_that_are_no_numbers_are_refused(directory, tmp_path, form):
    quantize_directory(directory, tmp_path / "small", Quantization(form, 32))
    tensors = load_file(tmp_path / "small" / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.scale"
    tensors[name][5] = float("inf")
    save_file(tensors, tmp_path / "small" / "model.safetensors", metadata={"format": "pt"})
    stored = read_config_file(tmp_path / "small").quantization
    with pytest.raises(ModelError, match=f"tensor {name} holds NaN or an infinity in row 5"):
        load(tmp_path / "small", stored)


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_serving_straight_from_the_file_is_serving_what_was_quantized_before(
    directory, tmp_path, form
):
    """One pass that quantizes and packs, against quantizing, writing, reading and packing."""
    if not cpu.available():
        pytest.skip("kernels not built")
    quantization = Quantization(form, 32, rotated=True)
    quantize_directory(directory, tmp_path / "small", quantization)
    options = {"device": "cpu", "dtype": torch.float32, "operations": cpu}
    straight, report = load_model(directory, quantization=quantization, **options)
    stored = read_config_file(tmp_path / "small").quantization
    before, other = load_model(tmp_path / "small", quantization=stored, **options)
    assert report.parameters == other.parameters
    packed = (dict(model.named_modules()) for model in (straight, before))
    for (name, ours), (_, theirs) in zip(*(modules.items() for modules in packed), strict=True):
        if hasattr(ours, "weight") and hasattr(ours.weight, "handle"):
            pairs = zip(ours.weight.tensors, theirs.weight.tensors, strict=True)
            assert all(torch.equal(a, b) for a, b in pairs), name
