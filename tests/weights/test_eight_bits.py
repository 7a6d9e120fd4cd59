"""Which projections of a 4-bit model have 8 bits, from the weights to the config and back."""

from __future__ import annotations

import pytest
import torch
from hagane.models.config import Quantization
from hagane.models.families import read_config, read_config_file
from hagane.models.formats.int4 import Int4
from hagane.models.formats.int8 import Int8
from hagane.models.spec import projections
from hagane.weights.eight_bits import choose_by_loss, largest_column
from hagane.weights.load import load_model
from hagane.weights.quantize import quantize_directory
from safetensors.torch import load_file, save_file

ATTENTION = {"self_attn.qkv_proj", "self_attn.o_proj"}


def kinds(model: torch.nn.Module) -> dict[str, type]:
    """The kind of every projection, by its path below the decoder."""
    return {
        name.removeprefix("model."): type(module)
        for name, module in model.named_modules()
        if isinstance(module, Int4 | Int8)
    }


def test_the_largest_column_in_units_of_all():
    rows = torch.ones(300, 8)
    rows[:, 5] = 3
    assert largest_column(rows) == pytest.approx(9 / 2)
    assert largest_column(torch.zeros(4, 8)) == 0
    assert rows[0].tolist() == [1, 1, 1, 1, 1, 3, 1, 1]


@pytest.mark.parametrize("rotated", [True, False])
def test_attention_and_what_has_one_large_column_have_8_bits(tiny_model_dir, tmp_path, rotated):
    tensors = load_file(tiny_model_dir / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][:, 7] *= 300
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_bytes((tiny_model_dir / "config.json").read_bytes())
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})

    quantize_directory(source, tmp_path / "small", Quantization("int4", 32, rotated))
    stored = read_config_file(tmp_path / "small").quantization
    assert stored is not None
    assert set(stored.eight_bits) == ATTENTION | {"layers.1.mlp.down_proj"}
    options = {"device": "cpu", "dtype": torch.float32}
    model, _ = load_model(tmp_path / "small", quantization=stored, **options)
    fresh, report = load_model(source, quantization=Quantization("int4", 32, rotated), **options)
    assert report.quantization == stored
    assert kinds(model) == kinds(fresh)
    for path, kind in kinds(model).items():
        wide = path.partition(".")[2].partition(".")[2] in ATTENTION or path in stored.eight_bits
        assert kind is (Int8 if wide else Int4), path


def test_a_directory_of_before_has_4_bits_everywhere():
    stored = {"quant_method": "hagane", "format": "int4", "group_size": 32, "rotated": True}
    raw = {
        "architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 64, "quantization_config": stored,
    }  # fmt: skip
    assert read_config(raw).quantization == Quantization("int4", 32, rotated=True)


@pytest.mark.parametrize("form", ["int8", "fp8"])
def test_formats_of_8_bits_need_no_plan(tiny_model_dir, form):
    options = {"device": "cpu", "dtype": torch.float32}
    _, report = load_model(tiny_model_dir, quantization=Quantization(form), **options)
    assert report.quantization == Quantization(form)


def test_the_costliest_for_each_weight_have_8_bits_within_the_plans_size(tiny_model_dir):
    config = read_config_file(tiny_model_dir)
    plan = Quantization("int4", 32, eight_bits=("self_attn.qkv_proj",))
    sizes = {path: spec.rows * spec.columns for path, spec in projections(config)}
    losses = dict.fromkeys(sizes, 1e-6)
    losses["layers.1.self_attn.o_proj"] = 1.0
    losses["layers.0.self_attn.qkv_proj"] = 0.5
    losses["layers.0.mlp.down_proj"] = 0.1
    chosen = choose_by_loss(config, plan, losses).eight_bits
    assert set(chosen[:1]) <= {"layers.0.self_attn.qkv_proj"}
    assert "layers.1.self_attn.o_proj" in chosen
    budget = sum(size for path, size in sizes.items() if path.endswith("qkv_proj"))
    assert sum(sizes[path] for path in chosen) <= budget
    del losses["layers.1.self_attn.qkv_proj"]
    assert "layers.1.self_attn.qkv_proj" in choose_by_loss(config, plan, losses).eight_bits
