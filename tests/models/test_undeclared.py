"""Undeclared families through transformers' own code, against transformers by itself."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path

import pytest
import torch
from hagane.kernels import cpu, reference
from hagane.models.config import Quantization
from hagane.models.families import read_config, read_config_file
from hagane.system.errors import ModelError
from hagane.weights.load import load_model
from transformers import AutoConfig, AutoModelForCausalLM

from tests.models.test_decoder import (
    BASE,
    PagedRun,
    expected_logits,
    random_tokens,
    run_in_random_chunks,
)
from tests.support.engine import RunningEngine, config

FAMILIES = {
    "gpt_neox": {"num_key_value_heads": None, "head_dim": None},
    "gpt2": {"n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 256},
    "hunyuan_v1_dense": {},
    "apertus": {},
    "cohere2": {"sliding_window": 9},
    "olmo": {"head_dim": None},
}
BACKENDS = [
    reference,
    pytest.param(cpu, marks=pytest.mark.skipif(not cpu.available(), reason="kernels not built")),
]


def make(family: str, directory: Path, **changes):
    torch.manual_seed(0)
    own = FAMILIES.get(family, {}) | changes
    shape = own if family == "gpt2" else BASE | own
    shape = {key: value for key, value in shape.items() if value is not None}
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
    ],
)
def test_what_cannot_be_served_is_refused_by_name(changes, message):
    raw = {**BASE, "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox"} | changes
    with pytest.raises(ModelError, match=message):
        read_config(raw)


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    raw = {**BASE, "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox"}
    with pytest.raises(ModelError, match=r"pip install 'hagane\[transformers\]'"):
        read_config(raw)


def test_state_besides_keys_and_values_is_found_by_a_trial(tmp_path):
    make("mamba2", tmp_path, **{"num_heads": 6, "head_dim": 16, "n_groups": 1, "state_size": 8})
    raw = json.loads((tmp_path / "config.json").read_text()) | {"num_attention_heads": 6}
    (tmp_path / "config.json").write_text(json.dumps(raw | {"intermediate_size": 80}))
    assert not read_config_file(tmp_path).declared
    with pytest.raises(ModelError, match="Mamba2ForCausalLM is not declared, and cannot be served"):
        load(tmp_path, reference)


@pytest.mark.skipif(not cpu.available(), reason="kernels not built")
@pytest.mark.parametrize("family", ["gpt_neox", "gpt2"])
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
