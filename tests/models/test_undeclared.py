"""Undeclared families through transformers' own code, against transformers by itself."""

from __future__ import annotations

import json
import logging
import random
import weakref
from pathlib import Path

import pytest
import torch
from hagane.kernels import cpu, reference
from hagane.models.config import Quantization
from hagane.models.families import read_config, read_config_file
from hagane.models.serving_layers import for_serving
from hagane.models.undeclared import ContextLinear, UndeclaredTransformer
from hagane.system.errors import ModelError
from hagane.weights.load import load_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests.models.decoder_families import BASE
from tests.models.test_decoder import (
    PagedRun,
    expected_logits,
    random_tokens,
    run_in_random_chunks,
)
from tests.support.engine import RunningEngine, config

FAMILIES = {
    "phi": {"head_dim": None, "hidden_size": 96},
    "apertus": {},
    "cohere2": {"sliding_window": 9},
    "arcee": {},
}
BACKENDS = [
    reference,
    pytest.param(cpu, marks=pytest.mark.skipif(not cpu.available(), reason="kernels not built")),
]


def make(family: str, directory: Path, **changes):
    torch.manual_seed(0)
    own = FAMILIES.get(family, {}) | changes
    shape = {key: value for key, value in (BASE | own).items() if value is not None}
    config = AutoConfig.for_model(family, **({"vocab_size": 160} | shape))
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.08)
    theirs.save_pretrained(directory)
    return theirs


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    return make(request.param, directory), directory


def load(directory: Path, operations, quantization=None):
    model, report = load_model(
        directory, device="cpu", dtype=torch.float32, quantization=quantization,
        operations=operations,
    )  # fmt: skip
    assert report.weight_bytes > 0 and report.parameters > 0
    return model


@pytest.mark.parametrize("operations", BACKENDS, ids=lambda module: module.__name__)
def test_batches_of_chunks_and_decodes_match_transformers(checkpoint, operations):
    theirs, directory = checkpoint
    rng = random.Random(3)
    sequences = {key: random_tokens(10 + key, rng.randint(5, 50)) for key in range(3)}
    run = PagedRun(load(directory, operations))
    for key, logits in run_in_random_chunks(run, sequences, rng).items():
        torch.testing.assert_close(
            logits, expected_logits(theirs, sequences[key]), atol=2e-4, rtol=0
        )


@pytest.mark.skipif(not cpu.available(), reason="kernels not built")
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_linear_layers_are_quantized(checkpoint, kind):
    theirs, directory = checkpoint
    model = load(directory, cpu, Quantization(kind, 32, rotated=True))
    tokens = random_tokens(6, 40)
    (logits,) = PagedRun(model).step([(0, tokens, 0, 40)])
    expected = expected_logits(theirs, tokens)
    close = torch.nn.functional.cosine_similarity(logits, expected)
    assert close.mean() > (0.98 if kind == "int8" else 0.9)
    assert not torch.equal(logits, expected)


def test_it_is_said_when_it_is_loaded(checkpoint, caplog):
    _, directory = checkpoint
    with caplog.at_level(logging.WARNING):
        load(directory, reference)
    assert any("not declared" in message and "slower" in message for message in caplog.messages)


def test_what_is_only_served_is_not_trained(checkpoint):
    _, directory = checkpoint
    options = {"device": "cpu", "dtype": torch.float32, "quantization": None}
    with pytest.raises(ModelError, match="it can be served, not trained"):
        load_model(directory, **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "baichuan"}, "code from a repository is never run"),
        (
            {"layer_types": ["full_attention", "conv"]},
            "layers of conv, for which there is no cache",
        ),
        ({"is_encoder_decoder": True}, "an encoder"),
        ({"quantization_config": {"quant_method": "gptq"}}, "read as floats"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_attention_heads": 5, "num_key_value_heads": 2}, "does not divide 5 heads"),
        ({"rope_scaling": {"type": "longrope"}}, r"rotation \(longrope\) changes with what else"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "dynamic", "factor": 2.0}}},
            r"rotation \(dynamic\) changes with what else",
        ),
        # Qwen3-Next and LFM2, with and without a list of their layers.
        (
            {"model_type": "qwen3_next", "layer_types": ["linear_attention", "full_attention"]},
            "layers of linear_attention, for which there is no cache",
        ),
        (
            {"model_type": "qwen3_next", "linear_conv_kernel_dim": 4},
            "states of linear attention, for which there is no cache",
        ),
        ({"model_type": "lfm2", "conv_L_cache": 3}, "states of short convolutions, for which"),
        (
            {"model_type": "llama4_text", "layer_types": ["chunked_attention"]},
            "layers of chunked_attention, for which",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(changes, message):
    raw = {**BASE, "architectures": ["PhiForCausalLM"], "model_type": "phi"} | changes
    with pytest.raises(ModelError, match=message):
        read_config(raw)


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    raw = {**BASE, "architectures": ["PhiForCausalLM"], "model_type": "phi"}
    with pytest.raises(ModelError, match=r"With transformers, too \(.*\[transformers\]"):
        read_config(raw)


@pytest.fixture
def damaged(tmp_path):
    """A model to be changed, and its tensors."""
    make("phi", tmp_path)
    return tmp_path, load_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, n: t.pop(n), "layers.1.mlp.fc1.weight is missing"),
        (lambda t, n: t[n].view(-1)[7:8].fill_(torch.nan), "layers.1.mlp.* holds NaN"),
        (lambda t, n: t.update({n: t[n][:-1].clone()}), "cannot be served"),
    ],
)
def test_weights_that_are_not_there_are_refused_by_name(damaged, change, message):
    directory, tensors = damaged
    change(tensors, "model.layers.1.mlp.fc1.weight")
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=message):
        load(directory, reference)


def test_files_that_are_none_are_refused(damaged):
    directory, _ = damaged
    (directory / "model.safetensors").write_bytes(b"no tensors at all")
    with pytest.raises(ModelError, match="PhiForCausalLM is not declared, and cannot be"):
        load(directory, reference)


def test_an_adapter_beside_the_model_is_not_applied(damaged):
    directory, _ = damaged
    (directory / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(ModelError, match=r"by the adapter of adapter_config\.json: move"):
        load(directory, reference)


def test_positions_that_begin_elsewhere_are_refused(tmp_path):
    make("roberta", tmp_path, is_decoder=True, num_key_value_heads=None, head_dim=None)
    with pytest.raises(ModelError, match="with this server's positions and attention it computes"):
        load(tmp_path, reference)


@pytest.mark.skipif(not cpu.available(), reason="kernels not built")
def test_routers_are_not_quantized(tmp_path):
    make("hunyuan_v1_moe", tmp_path, num_experts=5, moe_topk=2)
    model = load(tmp_path, cpu, Quantization("int8", 32, rotated=True))
    layer = model.decoder.layers[0]
    assert type(layer.mlp.gate.wg) is torch.nn.Linear
    assert type(layer.self_attn.o_proj) is ContextLinear


def test_layers_are_freed_as_they_are_replaced(tmp_path, monkeypatch):
    theirs = make("phi", tmp_path)
    model = UndeclaredTransformer(read_config_file(tmp_path), theirs, reference)
    layers = [weakref.ref(m) for m in model.decoder.modules() if type(m) is torch.nn.Linear]
    left = []

    def counting(*arguments):
        left.append(sum(layer() is not None for layer in layers))
        return for_serving(*arguments)

    monkeypatch.setattr("hagane.models.undeclared.for_serving", counting)
    del theirs
    model.replace_linears(None, torch.float32)
    # That being replaced, and perhaps the one before.
    assert left[len(layers) - 1] <= 2 < len(layers)


def test_state_besides_keys_and_values_is_found_by_a_trial(tmp_path):
    make("mamba2", tmp_path, **{"num_heads": 6, "head_dim": 16, "n_groups": 1, "state_size": 8})
    raw = json.loads((tmp_path / "config.json").read_text()) | {"num_attention_heads": 6}
    (tmp_path / "config.json").write_text(json.dumps(raw | {"intermediate_size": 80}))
    assert not read_config_file(tmp_path).declared
    with pytest.raises(ModelError, match="Mamba2ForCausalLM is not declared, and cannot be served"):
        load(tmp_path, reference)


@pytest.mark.skipif(not cpu.available(), reason="kernels not built")
@pytest.mark.parametrize("family", ["phi", "cohere2"])
def test_requests_together_get_the_greedy_text_of_transformers(tmp_path, family):
    theirs = make(family, tmp_path)
    prompts = {"one": random_tokens(1, 20), "two": random_tokens(2, 33)}
    with RunningEngine(config(tmp_path)) as running:
        for name, prompt in prompts.items():
            running.ask(name, tuple(prompt), tokens=10)
        answers = dict(zip(prompts, running.wait(*prompts), strict=True))
    for name, prompt in prompts.items():
        tokens = list(prompt)
        for _ in answers[name].tokens:
            tokens.append(int(expected_logits(theirs, tokens)[-1].argmax()))
        assert answers[name].tokens == tokens[len(prompt) :] and answers[name].tokens
