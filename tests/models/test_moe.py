"""Mixtures of experts: what is trained, saved, quantized and refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hagane.kernels import cpu
from hagane.lora.config import AdapterConfig
from hagane.lora.files import load_adapter, save_adapter
from hagane.lora.train import factors
from hagane.models.attention import PackedCausal
from hagane.models.config import Quantization
from hagane.models.families import read_config, read_config_file
from hagane.models.formats.int4 import Int4
from hagane.models.moe import NativeExperts
from hagane.models.spec import linear_shapes
from hagane.system.errors import ModelError, TrainingError
from hagane.training.finetune.examples import Example
from hagane.training.finetune.masking import MaskedSequence
from hagane.training.finetune.model import load_finetune_model
from hagane.training.finetune.objective import supervised_loss
from hagane.training.finetune.spec import FineTuneSpec
from hagane.training.jobs import estimates
from hagane.weights.load import load_model, save_model
from hagane.weights.quantize import quantize_directory
from safetensors.torch import load_file, save_file

from tests.support.mixture import KINDS, SHAPE, make_mixture

OPTIONS = {"device": "cpu", "dtype": torch.float32}
TOKENS = torch.arange(3, 23)


@pytest.fixture(scope="module", params=KINDS)
def directory(request, tmp_path_factory) -> Path:
    return make_mixture(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> Path:
    return make_mixture(tmp_path_factory.mktemp("qwen"), "qwen3_moe")


def logits(model) -> torch.Tensor:
    context = PackedCausal(rows=1, length=len(TOKENS))
    return model.logits(model(TOKENS, context))


def spec_of(model: Path, **changes) -> FineTuneSpec:
    return FineTuneSpec(
        model=model, training_file=model / "unread", dtype="float32", device="cpu", rank=2,
        **changes,
    )  # fmt: skip


def test_what_is_saved_is_what_was_read(directory, tmp_path):
    model, _ = load_model(directory, quantization=None, **OPTIONS)
    save_model(model, tmp_path, dtype=torch.float32)
    before, after = (load_file(d / "model.safetensors") for d in (directory, tmp_path))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_correction_keeps_its_digits_in_16_bits(tmp_path):
    source = make_mixture(tmp_path / "source", "glm4_moe")
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    stored = load_file(source / "model.safetensors")[name]
    assert not torch.equal(stored, stored.bfloat16().float())
    model, _ = load_model(source, device="cpu", dtype=torch.bfloat16, quantization=None)
    assert torch.equal(model.model.layers[1].mlp.correction.weight, stored)
    save_model(model, tmp_path / "saved", dtype=torch.bfloat16)
    assert torch.equal(load_file(tmp_path / "saved" / "model.safetensors")[name], stored)


def test_a_quantized_directory_loads_as_it_was_quantized(directory, tmp_path):
    quantization = Quantization("int4", 32, rotated=True)
    quantize_directory(directory, tmp_path / "small", quantization)
    fresh, report = load_model(directory, quantization=quantization, **OPTIONS)
    stored = read_config_file(tmp_path / "small").quantization
    assert report.quantization == stored
    model, _ = load_model(tmp_path / "small", quantization=stored, **OPTIONS)
    assert isinstance(model.model.layers[1].mlp.experts[3].down_proj, Int4)
    with torch.no_grad():
        assert torch.equal(logits(model), logits(fresh))


@pytest.mark.skipif(not cpu.available(), reason="kernels not built")
def test_experts_are_packed_into_one_call(directory):
    model, _ = load_model(directory, quantization=Quantization("int8"), operations=cpu, **OPTIONS)
    assert isinstance(model.model.layers[1].mlp.experts, NativeExperts)


def test_layers_that_guess_further_tokens_are_left_alone(tmp_path):
    source = make_mixture(tmp_path / "source", "glm4_moe")
    tensors = load_file(source / "model.safetensors")
    expected, _ = load_model(source, quantization=None, **OPTIONS)
    for name in list(tensors):
        if name.startswith("model.layers.1."):
            tensors[name.replace("layers.1.", "layers.2.")] = tensors[name].clone()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    model, _ = load_model(source, quantization=None, **OPTIONS)
    with torch.no_grad():
        assert torch.equal(logits(model), logits(expected))


@pytest.mark.parametrize("quantize", ["none", "int4"])
def test_an_adapter_is_trained_through_experts(directory, quantize):
    model = load_finetune_model(spec_of(directory, quantize=quantize), 32)
    assert model.adapter is not None
    trained = factors(model.transformer, model.adapter)
    assert not any("experts." in path and "shared" not in path for path in trained)
    sequence = MaskedSequence(TOKENS.numpy().astype(np.int32), np.arange(len(TOKENS)) >= 4)
    supervised_loss(model.transformer, [Example((sequence,), b"")]).total.backward()
    for path, (_, b) in trained.items():
        assert b.grad is not None and b.grad.abs().sum() > 0, path


def test_all_weights_are_trained_with_the_router(qwen):
    model = load_finetune_model(spec_of(qwen, full=True), 32)
    logits(model.transformer).logsumexp(-1).sum().backward()
    gradients = {n for n, p in model.transformer.named_parameters() if p.grad is not None}
    assert "model.layers.0.mlp.gate.weight" in gradients
    assert any("mlp.experts" in name for name in gradients)


def test_targets_that_are_experts_alone_are_refused(qwen):
    with pytest.raises(TrainingError, match=r"target_modules .*experts are not adapted"):
        load_finetune_model(spec_of(qwen, target_modules=("gate_proj", "up_proj")), 32)


def test_an_adapter_of_experts_is_refused_by_name(qwen, tmp_path):
    config = read_config_file(qwen)
    changes = {
        path: (torch.randn(2, columns), torch.randn(rows, 2))
        for path, (rows, columns) in linear_shapes(config).items()
    }
    changes["layers.0.mlp.experts.3.up_proj"] = (torch.randn(2, 64), torch.randn(32, 2))
    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj")
    save_adapter(tmp_path, AdapterConfig(2, 4.0, targets), changes)
    with pytest.raises(ModelError, match=r"experts\.3\.up_proj.* an expert .*target_modules"):
        load_adapter(tmp_path, config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts_per_tok": 9}, "num_experts_per_tok is 9, of 8 experts"),
        ({"n_group": 3}, "n_group 3 does not divide 8"),
        ({"n_group": 4, "topk_group": 1}, "num_experts_per_tok is 3, of 2 experts"),
        ({"n_group": 2, "topk_group": 4}, "n_group"),
    ],
)
def test_choices_that_cannot_be_made_are_refused(directory, changes, message):
    raw = json.loads((directory / "config.json").read_text()) | changes
    if "n_group" in changes and raw["model_type"] != "glm4_moe":
        pytest.skip("its router has no groups")
    with pytest.raises(ModelError, match=message):
        read_config(raw)


def test_estimates_count_all_experts_and_time_those_that_are_chosen(qwen):
    config = read_config_file(qwen)
    expert = 3 * 64 * 32
    attention = 64 * (64 + 2 * 32) + 64 * 64
    assert estimates.parameters(config) == SHAPE["num_hidden_layers"] * (attention + 8 * expert)
    idle = SHAPE["num_hidden_layers"] * 5 * expert
    assert estimates.active_parameters(config) == estimates.parameters(config) - idle
