"""Rows of tokens that an adapter trains: PEFT's gradients, its files, a widened model."""

from __future__ import annotations

import json

import pytest
import torch
from hagane.kernels import cpu, reference
from hagane.kernels.cpu import training
from hagane.lora.config import EMBEDDING, AdapterConfig
from hagane.lora.export import export_gguf
from hagane.lora.files import load_adapter, save_adapter
from hagane.lora.merge import merge_directory
from hagane.lora.train import attach, disabled, factors
from hagane.lora.trained_rows import train_rows, trained_rows
from hagane.lora.widen import widen_directory
from hagane.models.attention import PackedSequences
from hagane.models.decoder import use_operations
from hagane.system.errors import ConfigurationError, ModelError
from hagane.text.tokenizer import Tokenizer
from hagane.training.finetune.objective import score
from hagane.weights.load import load_model
from hagane.weights.sources.config import load_config
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.support.adapted import sequence, token_logprobs

TRAINED = (301, 7, 12)
CONFIG = AdapterConfig(rank=4, alpha=8.0, token_ids={EMBEDDING: TRAINED})
IDS = torch.tensor([5, 7, 9, 301, 12, 7, 11, 40])


def adapted(directory, config):
    """Our model below an adapter with trained rows, all of them random."""
    model, _ = load_model(directory, device="cpu", dtype=torch.float32, quantization=None)
    attach(model, config, torch.Generator().manual_seed(1))
    train_rows(model, TRAINED)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, b in factors(model, config).values():
            b.normal_(0, 0.1, generator=generator)
        for rows in trained_rows(model).values():
            rows.normal_(0, 0.3, generator=generator)
    return model


def config_of(directory):
    tied = load_config(directory).tie_word_embeddings
    names = (EMBEDDING,) if tied else (EMBEDDING, "lm_head")
    return AdapterConfig(rank=4, alpha=8.0, token_ids=dict.fromkeys(names, TRAINED))


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def base(request, tiny_model_dir, tmp_path_factory):
    """The tiny model with a head of its own, and with one that is the embedding."""
    whole = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    if request.param:
        whole.lm_head.weight = whole.model.embed_tokens.weight
        whole.config.tie_word_embeddings = True
    directory = tmp_path_factory.mktemp("base") / "model"
    whole.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((tiny_model_dir / name).read_bytes())
    return directory


@pytest.mark.parametrize("operations", [reference, training], ids=["reference", "training"])
def test_values_and_gradients_equal_pefts(base, tmp_path, operations):
    if operations is training and not cpu.available():
        pytest.skip("needs the native kernels")
    config = config_of(base)
    model = adapted(base, config)
    use_operations(model, operations)
    save_adapter(tmp_path / "adapter", config, factors(model, config), trained_rows(model))
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter", is_trainable=True
    )
    of = sequence(24, 6)
    of.tokens[8:11] = TRAINED
    scores = score(model, [of])
    scores.logprobs.sum().backward()
    ids = torch.from_numpy(of.tokens).long()
    logits = theirs(input_ids=ids[None]).logits[0].log_softmax(-1)
    chosen = logits[:-1].gather(1, ids[1:, None])[torch.from_numpy(of.loss_mask[1:])][:, 0]
    torch.testing.assert_close(scores.logprobs, chosen, rtol=1e-4, atol=1e-4)
    chosen.sum().backward()
    found = {
        name: p.grad for name, p in theirs.named_parameters() if "trainable_tokens_delta" in name
    }
    assert len(found) == len(trained_rows(model))
    for name, rows in trained_rows(model).items():
        grad = next(grad for key, grad in found.items() if name in key)
        torch.testing.assert_close(rows.grad, grad, rtol=1e-3, atol=1e-3)


def test_what_peft_saves_is_read_and_merged_to_the_same_logits(base, tmp_path):
    config = config_of(base)
    model = adapted(base, config)
    save_adapter(tmp_path / "ours", config, factors(model, config), trained_rows(model))
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), tmp_path / "ours"
    )
    theirs.save_pretrained(tmp_path / "theirs")
    read = load_adapter(tmp_path / "theirs", load_config(base))
    assert {name: rows.ids for name, rows in read.tokens.items()} == config.token_ids
    merge_directory(base, tmp_path / "theirs", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        own = model.logits(model(IDS, PackedSequences([len(IDS)])))
        torch.testing.assert_close(merged(IDS[None]).logits[0], own, rtol=1e-4, atol=1e-3)


def test_without_the_adapter_the_model_is_the_base(base):
    model = adapted(base, config_of(base))
    plain = AutoModelForCausalLM.from_pretrained(base)
    of = sequence(24, 6)
    of.tokens[8:11] = TRAINED
    with torch.no_grad(), disabled(model):
        found = score(model, [of]).logprobs
    torch.testing.assert_close(found, token_logprobs(plain, of), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("indices", "reason"),
    [
        ({"embed_tokens": [5, 5]}, "twice"),
        ({"embed_tokens": [100_000]}, "which has more"),
        ({"model.norm": [1]}, "names 'model.norm'"),
        ([1, 2], "has shape|is unexpected"),
        ([-1], "trainable_token_indices"),
    ],
)
def test_rows_that_do_not_fit_are_refused_by_name(base, tmp_path, indices, reason):
    config = config_of(base)
    model = adapted(base, config)
    save_adapter(tmp_path / "adapter", config, factors(model, config), trained_rows(model))
    path = tmp_path / "adapter" / "adapter_config.json"
    changed = json.loads(path.read_text()) | {"trainable_token_indices": indices}
    path.write_text(json.dumps(changed))
    with pytest.raises(ModelError, match=reason):
        load_adapter(tmp_path / "adapter", load_config(base))


def test_a_widened_model_has_the_tokens_and_nothing_else_changes(base, tmp_path):
    ids = widen_directory(base, tmp_path / "wide", ["<think>", "<search>"])
    before, after = load_config(base).vocab_size, load_config(tmp_path / "wide").vocab_size
    assert list(ids.values()) == [before, before + 1]
    assert after == before + 2
    tokenizer, old = Tokenizer.load(tmp_path / "wide"), Tokenizer.load(base)
    text = "a cat"
    assert tokenizer.encode(f"{text}<think>{text}") == [
        *old.encode(text), ids["<think>"], *old.encode(text, add_special_tokens=False),
    ]  # fmt: skip
    wide = AutoModelForCausalLM.from_pretrained(tmp_path / "wide")
    plain = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        found = wide(IDS[None]).logits[0]
        torch.testing.assert_close(found[:, :before], plain(IDS[None]).logits[0])
        pieces = old.encode("<think>", add_special_tokens=False)
        embedding = plain.get_input_embeddings().weight[pieces].mean(0)
        torch.testing.assert_close(wide.get_input_embeddings().weight[before], embedding)
    with pytest.raises(ConfigurationError, match="already"):
        widen_directory(tmp_path / "wide", tmp_path / "again", ["<think>"])


def test_a_gguf_file_is_widened_into_a_directory(base, tmp_path):
    export_gguf(base, None, tmp_path / "model.gguf", "F32")
    ids = widen_directory(tmp_path / "model.gguf", tmp_path / "wide", ["<think>"])
    before = load_config(base).vocab_size
    assert ids == {"<think>": before}
    assert Tokenizer.load(tmp_path / "wide").encode("<think>") == [before]
    model, _ = load_model(tmp_path / "wide", device="cpu", dtype=torch.float32, quantization=None)
    plain = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        own = model.logits(model(IDS, PackedSequences([len(IDS)])))
        torch.testing.assert_close(
            own[:, :before], plain(IDS[None]).logits[0], rtol=1e-4, atol=1e-3
        )
