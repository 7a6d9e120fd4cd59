"""Directories that other programs quantized: the dequantized weights, and refusals."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from hagane.system.errors import ModelError
from hagane.weights.opening import open_weights
from safetensors.torch import load_file, save_file

from tests.support.quantized import KINDS, write_quantized


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_of_the_format(tiny_model_dir, tmp_path, kind):
    values = write_quantized(tiny_model_dir, tmp_path / "model", KINDS[kind])
    _, source = open_weights(tmp_path / "model")
    for name, expected in values.items():
        rows = source.read(name, tuple(expected.shape))
        got = torch.cat([block.float() for block in rows.split(7)])
        assert torch.equal(got, expected.float()), name
    assert source.others(values) == []


def change(directory, edit):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file({name: t.contiguous() for name, t in tensors.items()}, path)


@pytest.fixture
def made(tiny_model_dir, tmp_path):
    values = write_quantized(tiny_model_dir, tmp_path / "model", KINDS["gptq"])
    return tmp_path / "model", values


DOWN = "model.layers.1.mlp.down_proj"


def test_layers_that_were_not_quantized_are_floats(made, tiny_model_dir):
    path, _ = made
    weight = load_file(tiny_model_dir / "model.safetensors")[f"{DOWN}.weight"]

    def edit(tensors):
        for kind in ("qweight", "qzeros", "scales", "g_idx"):
            del tensors[f"{DOWN}.{kind}"]
        tensors[f"{DOWN}.weight"] = weight

    change(path, edit)
    _, source = open_weights(path)
    assert torch.equal(source.read(f"{DOWN}.weight", tuple(weight.shape)), weight)


def test_biases_of_zeros_are_nothing_and_others_are_refused(made):
    path, values = made
    outputs = len(values[f"{DOWN}.weight"])
    change(path, lambda tensors: tensors.update({f"{DOWN}.bias": torch.zeros(outputs)}))
    open_weights(path)
    change(path, lambda tensors: tensors.update({f"{DOWN}.bias": torch.ones(outputs)}))
    with pytest.raises(ModelError, match=r"down_proj\.bias is unexpected"):
        open_weights(path)


def test_scales_of_activations_and_of_the_cache_are_left_alone(tiny_model_dir, tmp_path):
    write_quantized(tiny_model_dir, tmp_path / "model", KINDS["w8a8"])
    one = torch.ones(1)
    more = {f"{DOWN}.input_scale": one, "model.layers.0.self_attn.k_scale": one.clone()}
    change(tmp_path / "model", lambda tensors: tensors.update(more))
    open_weights(tmp_path / "model")


@pytest.mark.parametrize(
    ("tensor", "value", "message"),
    [
        ("g_idx", torch.full((128,), 9, dtype=torch.int32), "names a group that is none of 4"),
        ("g_idx", torch.zeros(64, dtype=torch.int32), r"has shape \[64, 64\]"),
        ("scales", torch.ones(4, 63), "scales has shape"),
        ("qweight", torch.zeros(16, 64), "is torch.float32, not torch.int32"),
        ("qzeros", torch.zeros(4, 9, dtype=torch.int32), "qzeros has shape"),
        ("qweight", torch.zeros(17, 64, dtype=torch.int32), "no number of bits fits"),
    ],
)
def test_tensors_that_do_not_fit_are_named(made, tensor, value, message):
    path, values = made
    name = f"{DOWN}.weight"
    change(path, lambda tensors: tensors.update({f"{DOWN}.{tensor}": value}))
    with pytest.raises(ModelError, match=message):
        open_weights(path)[1].read(name, tuple(values[name].shape))


def test_what_older_programs_wrote_into_a_file_of_its_own_is_read(made):
    path, _ = made
    config = json.loads((path / "config.json").read_text())
    own = config.pop("quantization_config")
    del own["quant_method"]
    (path / "config.json").write_text(json.dumps(config))
    (path / "quantize_config.json").write_text(json.dumps(own))
    config, _ = open_weights(path)
    assert config.stored.summary == "GPTQ, 4 bits, groups of 32"


def test_a_damaged_file_is_named(made):
    path, _ = made
    shutil.copyfile(path / "config.json", path / "model.safetensors")
    with pytest.raises(ModelError, match="truncated or not a safetensors file"):
        open_weights(path)
