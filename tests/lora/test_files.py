"""PEFT's directory format: what is read, what is refused, what a digest says."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from hagane.lora.config import AdapterConfig, adapter_digest
from hagane.lora.files import load_adapter, save_adapter
from hagane.models.config import ModelConfig
from hagane.models.families import read_config_file
from hagane.models.spec import linear_shapes
from hagane.system.errors import ModelError
from safetensors.torch import load_file, save_file

RANK = 4


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> ModelConfig:
    return read_config_file(tiny_model_dir)


@pytest.fixture
def saved(model: ModelConfig, tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    factors = {
        module: (
            torch.randn(RANK, width, generator=generator),
            torch.randn(out, RANK, generator=generator),
        )
        for module, (out, width) in linear_shapes(model).items()
    }
    directory = tmp_path / "adapter"
    save_adapter(directory, AdapterConfig(RANK, 8.0, base_model="tiny"), factors)
    return directory


def edit(directory: Path, **changes: object) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_written_is_read_back(saved, model):
    adapter = load_adapter(saved, model)
    stored = load_file(saved / "adapter_model.safetensors")
    assert set(adapter.changes) == set(linear_shapes(model))
    change = adapter.changes["layers.1.mlp.down_proj"]
    key = "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"
    assert torch.equal(change.a, stored[key])
    assert change.scale == 8.0 / RANK
    assert not list(saved.glob(".*"))


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({"use_rslora": True}, 8.0 / RANK**0.5),
        ({"alpha_pattern": {"q_proj": 2.0}}, 2.0 / RANK),
        ({"alpha_pattern": {"layers.0.self_attn.q_proj": 2.0}}, 2.0 / RANK),
        ({"alpha_pattern": {"layers.1.self_attn.q_proj": 2.0}}, 8.0 / RANK),
        ({"alpha_pattern": {"proj": 2.0}}, 8.0 / RANK),
    ],
)
def test_scales(saved, model, changes, scale):
    edit(saved, **changes)
    assert load_adapter(saved, model).changes["layers.0.self_attn.q_proj"].scale == scale


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type must be LORA"),
        ({"use_dora": True}, "has only lora_A and lora_B"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias 'all' is not supported"),
        ({"r": 0}, "r is 0"),
        ({"r": 2.5}, "r is 2.5; expected `int`"),
        ({"r": True}, "r is True; expected `int`"),
        ({"r": 10**30}, "r is 1000000000000000000"),
        ({"r": 8}, "down_proj.lora_A.weight has shape [4, 128], the model and the adapter's rank"),
        ({"target_modules": ["embed_tokens"]}, "names no matrix of the model"),
        ({"target_modules": []}, "it must name modules"),
        ({"target_modules": ["q_proj"]}, "is unexpected in a LoRA adapter for this model"),
        ({"target_modules": "(a|a)*(.*)*(.*)*(.*)*(.*)*!"}, "processor time"),
        ({"rank_pattern": {"(": 4}}, "no regular expression"),
        ({"rank_pattern": {"(a|a)*(.*)*(.*)*(.*)*(.*)*(.*)*(.*)*!": 4}}, "processor time"),
        ({"alpha_pattern": {"q_proj": float("nan")}}, "alpha_pattern"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"lora_alpha": float("inf")}, "lora_alpha is inf"),
        ({"lora_alpha": 1e308}, "lora_alpha is 1e+308"),
        ({"lora_alpha": -1}, "lora_alpha is -1"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base model"),
        ({"init_lora_weights": "PiSSA"}, "changes the base model"),
        ({"init_lora_weights": "olora"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "loftq"}, "changes the base model"),
        ({"init_lora_weights": "corda"}, "changes the base model"),
        ({"init_lora_weights": "lora_ga"}, "changes the base model"),
        ({"kasa_config": {"beta": 1e-4}}, "kasa_config"),
        ({"target_modules": ".*", "layers_to_transform": [0]}, "is a regular expression; with it"),
    ],
)
def test_what_would_be_served_wrong_is_refused(saved, model, changes, message):
    edit(saved, **changes)
    with pytest.raises(ModelError, match=re.escape(message)):
        load_adapter(saved, model)


def test_damaged_weights_are_refused(saved, model):
    path = saved / "adapter_model.safetensors"
    tensors = load_file(path)
    key = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    save_file({k: v for k, v in tensors.items() if k != key}, path)
    with pytest.raises(ModelError, match="up_proj has only lora_A"):
        load_adapter(saved, model)
    save_file({**tensors, "base_model.model.lm_head.weight": torch.ones(1)}, path)
    with pytest.raises(ModelError, match="lm_head"):
        load_adapter(saved, model)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match="truncated"):
        load_adapter(saved, model)
    path.unlink()
    (saved / "adapter_model.bin").touch()
    with pytest.raises(ModelError, match="pickle"):
        load_adapter(saved, model)


def test_the_digest_is_of_the_content(saved, tmp_path):
    copy = shutil.copytree(saved, tmp_path / "other-name")
    assert adapter_digest(copy) == adapter_digest(saved)
    edit(copy, lora_alpha=9.0)
    assert adapter_digest(copy) != adapter_digest(saved)
    with pytest.raises(ModelError, match="does not exist"):
        adapter_digest(tmp_path)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_only_regular_files_are_opened(saved, model, name, tmp_path):
    (saved / name).unlink()
    os.mkfifo(saved / name)
    for read in (adapter_digest, lambda directory: load_adapter(directory, model)):
        with pytest.raises(ModelError, match="not a regular file"):
            read(saved)
    (saved / name).unlink()
    (saved / name).symlink_to("/dev/zero")
    with pytest.raises(ModelError, match="not a regular file"):
        load_adapter(saved, model)


def test_a_file_far_larger_than_the_ranks_say_is_not_read(saved, model):
    with (saved / "adapter_model.safetensors").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(ModelError, match="are plausible"):
        load_adapter(saved, model)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float8_e4m3fn])
def test_factors_that_are_no_floats_are_refused(saved, model, dtype):
    path = saved / "adapter_model.safetensors"
    save_file({k: v.to(dtype) for k, v in load_file(path).items()}, path)
    with pytest.raises(ModelError, match="floats of 16 or 32 bits"):
        load_adapter(saved, model)


def test_a_byte_order_mark_is_no_fault(saved, model):
    path = saved / "adapter_config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_adapter(saved, model).changes


def test_magnitudes_are_read_where_the_configuration_names_them(model, tmp_path):
    (out, width) = linear_shapes(model)["layers.0.mlp.up_proj"]
    config = AdapterConfig(RANK, 8.0, target_modules=("layers.0.mlp.up_proj",), dora=True)
    factors = torch.randn(RANK, width), torch.randn(out, RANK), torch.rand(out)
    save_adapter(tmp_path, config, {"layers.0.mlp.up_proj": factors})
    change = load_adapter(tmp_path, model).changes["layers.0.mlp.up_proj"]
    assert all(map(torch.equal, change.tensors(), factors))
    edit(tmp_path, use_dora=False)
    with pytest.raises(ModelError, match="lora_magnitude_vector is unexpected"):
        load_adapter(tmp_path, model)
