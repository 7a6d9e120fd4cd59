"""PEFT's directory format: what is read, what is refused, what a digest says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hagane.lora.config import AdapterConfig, adapter_digest
from hagane.lora.files import linear_shapes, load_adapter, save_adapter
from hagane.models.config import ModelConfig
from hagane.system.errors import ModelError
from safetensors.torch import load_file, save_file

RANK = 4


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> ModelConfig:
    return ModelConfig.load(tiny_model_dir)


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
        ({"use_dora": True}, "use_dora True is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias 'all' is not supported"),
        ({"r": 0}, "r is 0"),
        ({"r": 2.5}, "whole number"),
        ({"r": 8}, "lora_A of layers.0.mlp.down_proj has shape"),
        ({"target_modules": ["embed_tokens"]}, "target_modules names 'embed_tokens'"),
        ({"target_modules": []}, "must be a list"),
        ({"rank_pattern": {"(": 4}}, "no regular expression"),
    ],
)
def test_what_would_be_served_wrong_is_refused(saved, model, changes, message):
    edit(saved, **changes)
    with pytest.raises(ModelError, match=message.replace("(", r"\(")):
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
    with pytest.raises(ModelError, match="cannot be read"):
        adapter_digest(tmp_path)
