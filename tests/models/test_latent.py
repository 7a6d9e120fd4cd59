"""Latent attention over a cache of latent vectors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hagane.kernels import cpu, reference
from hagane.lora.banks import AdapterBanks
from hagane.lora.files import load_adapter
from hagane.models.config import CacheSpec, Quantization
from hagane.models.latent_heads import AbsorbedHeads
from hagane.system.errors import ModelError
from hagane.weights.matrices import MatrixReader
from hagane.weights.quantize import quantize_directory

from tests.engine.test_loop_tiers import settle
from tests.models.decoder_families import BASE, DEEPSEEK
from tests.models.test_decoder import (
    PagedRun,
    expected_logits,
    load,
    random_model,
    random_tokens,
)
from tests.support.engine import RunningEngine, config, make_adapter, merged

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the kernels were not built")
RANK, TURNED = DEEPSEEK["kv_lora_rank"], DEEPSEEK["qk_rope_head_dim"]
WIDTH = DEEPSEEK["qk_nope_head_dim"] + TURNED


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("latent")
    random_model("deepseek-v2", made)
    return made


def test_the_cache_has_latent_vectors_where_kernels_read_them(directory):
    model = load(directory, cpu)
    layers = BASE["num_hidden_layers"]
    assert model.caches == (CacheSpec(1, RANK + TURNED, shared=True),) * layers
    assert model.caches[0].bytes_of_token(2, 0) == 2 * (RANK + TURNED)
    heads = BASE["num_attention_heads"]
    expanded = load(directory, reference).caches
    assert expanded == (CacheSpec(heads, WIDTH),) * layers
    assert expanded[0].bytes_of_token(2, 0) == 2 * 2 * heads * WIDTH


def test_matrices_stay_dense_and_are_counted(directory):
    model = load(directory, cpu, Quantization("int8", rotated=True), torch.bfloat16)
    absorbed = model.model.layers[0].self_attn.kv_b_proj
    assert isinstance(absorbed, AbsorbedHeads)
    heads, values = BASE["num_attention_heads"], DEEPSEEK["v_head_dim"]
    weights = heads * RANK * (DEEPSEEK["qk_nope_head_dim"] + values)
    assert absorbed.nbytes >= 2 * weights


def test_what_is_stored_in_int8_serves_as_what_is_quantized_when_loaded(directory, tmp_path):
    quantization, tokens = Quantization("int8", rotated=True), random_tokens(4, 40)
    quantize_directory(directory, tmp_path / "stored", quantization)
    stored = load(tmp_path / "stored", cpu, quantization)
    (expected,) = PagedRun(load(directory, cpu, quantization)).step([(0, tokens, 0, 40)])
    (logits,) = PagedRun(stored).step([(0, tokens, 0, 40)])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_an_int8_cache_of_latents_is_near(directory):
    model, tokens = load(directory, cpu), random_tokens(5, 60)
    (expected,) = PagedRun(model).step([(0, tokens, 0, 60)])
    coarse = PagedRun(model, dtype=torch.int8)
    (whole,) = coarse.step([(0, tokens, 0, 60)])
    assert torch.nn.functional.cosine_similarity(whole, expected).min() > 0.999
    parts = [coarse.step([(1, tokens, at, at + 1)])[0] for at in range(60)]
    assert torch.equal(torch.cat(parts), whole)


def test_blocks_come_back_from_host_memory(directory):
    block = BASE["num_hidden_layers"] * 16 * 4 * (RANK + TURNED)
    settings = config(directory, kv_cache_memory=8 * block, kv_cache_host_memory=8 << 20)
    prompt = tuple(random_tokens(1, 97))
    with RunningEngine(settings) as engine:
        assert engine.engine.runner.blocks == 8
        engine.ask("first", prompt)
        (first,) = engine.wait("first")
        for number in range(12):
            engine.ask(f"other {number}", tuple(random_tokens(50 + number, 100)), tokens=2)
            engine.wait(f"other {number}")
        settle(engine, lambda tiers: tiers.host_blocks > 12)
        engine.ask("again", prompt)
        (again,) = engine.wait("again")
        assert engine.stats.tiers.restored
    assert again.cached == 96
    assert (again.tokens, again.logprobs) == (first.tokens, first.logprobs)


def test_an_engine_answers_as_transformers_with_and_without_an_adapter(directory, tmp_path):
    """In steps that are recorded, of requests side by side; the adapter changes every matrix."""
    targets = ("q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
    adapter = make_adapter(tmp_path / "adapter", directory, 3, targets=targets)
    prompts = [tuple(random_tokens(seed, 20 * seed)) for seed in (1, 2, 3)]
    models = {
        "plain": (None, merged(directory, None)),
        "adapted": (adapter, merged(directory, adapter)),
    }
    with RunningEngine(config(directory)) as engine:
        for kind, (own, _) in models.items():
            for number, prompt in enumerate(prompts):
                engine.ask(f"{kind} {number}", prompt, adapter=own, tokens=8)
        for kind, (_, theirs) in models.items():
            for number, prompt in enumerate(prompts):
                (answer,) = engine.wait(f"{kind} {number}")
                tokens = list(prompt)
                for _ in range(8):
                    tokens.append(int(expected_logits(theirs, tokens)[-1].argmax()))
                assert answer.tokens == tokens[len(prompt) :]


def test_magnitudes_of_the_absorbed_matrix_are_refused(directory, tmp_path):
    model = load(directory, cpu)
    banks = AdapterBanks(
        model, torch.float32, torch.device("cpu"),
        lambda: MatrixReader(directory, torch.float32, None),
    )  # fmt: skip
    ref = make_adapter(tmp_path / "others", directory, 1, targets=("o_proj",), dora=True)
    banks.resolve(load_adapter(Path(ref.directory), model.config))
    ref = make_adapter(tmp_path / "it", directory, 1, targets=("kv_b_proj",), dora=True)
    with pytest.raises(ModelError, match=r"DoRA \(use_dora\) of layers.0.self_attn.kv_b_proj"):
        banks.resolve(load_adapter(Path(ref.directory), model.config))
