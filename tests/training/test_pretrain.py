"""A whole pretraining run on a tiny corpus."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.errors import ConfigurationError
from app.training import pretrain as module
from app.training.config import Corpus, PretrainConfig
from app.training.corpus import PackedRows, documents, mixture, token_bytes, train_tokenizer
from app.training.optimizer import schedule
from app.training.pretrain import pretrain
from app.transformer.attention import PackedCausal
from app.transformer.weights import load_model

SENTENCES = ["The cat sat on the mat. ", "今日は天気が良いので、散歩に行きました。"]

VALID = 'output = "x"\nsteps = 3\ncorpora = [{path = "x"}]\n'
SHAPE = (
    "[model]\nhidden_size = 8\nlayers = 1\nheads = 1\nkv_heads = 1\n"
    "intermediate_size = 8\ncontext_length = 64\n"
)


@pytest.fixture
def config(tmp_path: Path) -> PretrainConfig:
    corpus = tmp_path / "corpus.jsonl"
    records = [{"text": f"{i}: {SENTENCES[i % 2] * 4}"} for i in range(120)]
    turn = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    records += [{"messages": turn}] * 60
    corpus.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in records))
    return PretrainConfig.model_validate(
        {
            "output": tmp_path / "run",
            "corpora": [{"path": corpus, "epochs": 1.5}],
            "model": {"hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 2,
                      "intermediate_size": 64, "context_length": 64},
            "vocab_size": 320, "sequence_length": 32, "batch_rows": 4, "steps": 60,
            "warmup_steps": 5, "learning_rate": 1e-2, "checkpoint_every": 20,
            "validation_rows": 4, "held_out": 0.1, "compile": False, "samples": ["The cat"],
        }
    )  # fmt: skip


def test_a_run_learns_and_its_model_loads_in_transformers(config):
    scores = pretrain(config)
    assert set(scores) == {"corpus"}
    # Random weights need log2(320) bits for a token of about two bytes.
    assert 0 < scores["corpus"] < 1.5
    model, _ = load_model(config.output, device="cpu", dtype=torch.float32, quantization=None)
    ids = torch.arange(20) + 5
    with torch.no_grad():
        ours = model.logits(model(ids, PackedCausal(rows=1, length=20)))
        theirs = AutoModelForCausalLM.from_pretrained(config.output)(ids[None]).logits[0].float()
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    tokenizer = AutoTokenizer.from_pretrained(config.output)
    text = "今日は🐈 the cat"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert chat == "<|im_start|>user\nHi<|im_end|>\n"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_interrupted_run_ends_with_the_same_weights(config, monkeypatch, optimizer):
    config = config.model_copy(update={"optimizer": optimizer, "micro_rows": 2})
    pretrain(config)
    whole = (config.output / "model.safetensors").read_bytes()
    again = config.model_copy(update={"output": config.output.parent / "again"})
    rate = module.schedule

    def crash(step: int, of: PretrainConfig) -> float:
        if step == 33:
            raise KeyboardInterrupt
        return rate(step, of)

    monkeypatch.setattr(module, "schedule", crash)
    with pytest.raises(KeyboardInterrupt):
        pretrain(again)
    monkeypatch.undo()
    pretrain(again)
    assert (again.output / "model.safetensors").read_bytes() == whole


def test_a_second_stage_starts_where_the_first_ended(config):
    first = pretrain(config)
    second = config.model_copy(
        update={"model": None, "start_from": config.output, "output": config.output / "second",
                "learning_rate": 1e-4, "steps": 5, "warmup_steps": 0}
    )  # fmt: skip
    assert pretrain(second)["corpus"] < first["corpus"] + 0.05
    tokenizers = [Path(c.output / "tokenizer.json").read_text() for c in (config, second)]
    assert tokenizers[0] == tokenizers[1]
    with pytest.raises(ConfigurationError, match="context length of 64"):
        pretrain(second.model_copy(update={"sequence_length": 65, "output": config.output / "3"}))


def test_micro_batches_change_nothing_but_memory(config):
    whole = pretrain(config)
    parts = {"micro_rows": 1, "output": config.output.parent / "parts"}
    assert pretrain(config.model_copy(update=parts))["corpus"] == pytest.approx(
        whole["corpus"], abs=2e-3
    )


def test_no_text_is_both_trained_on_and_held_out(tmp_path):
    texts = [f"document {i % 50}" for i in range(200)]
    for name in ("a", "b"):
        lines = "\n".join(json.dumps({"text": text}) for text in texts)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    corpora = [Corpus(path=tmp_path / "a.jsonl", epochs=2.5), Corpus(path=tmp_path / "b.jsonl")]
    made = mixture(corpora, 0.1, seed=0)
    assert set(made.held_out) == {"a", "b"}
    assert len(made.held_out["a"]) == 5
    assert not set(made.training) & set(made.held_out["a"])
    assert len(made.training) == 180 * 2 + 90 + 180
    assert made == mixture(corpora, 0.1, seed=0)


def test_corpora_are_files_directories_or_globs(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}')
    (tmp_path / "b.txt").write_text("line\n" * 4000)
    pieces = list(documents(Corpus(path=tmp_path / "b.txt")))
    assert "".join(pieces) == "line\n" * 4000
    assert len(pieces) == 3
    assert list(documents(Corpus(path=tmp_path))) == ["one", "two", *pieces]
    assert list(documents(Corpus(path=tmp_path / "*.jsonl"))) == ["one", "two"]
    with pytest.raises(ConfigurationError, match="matches no file"):
        list(documents(Corpus(path=tmp_path / "*.csv")))
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"txt": "two"}')
    with pytest.raises(ConfigurationError, match="line 2"):
        list(documents(Corpus(path=tmp_path / "a.jsonl")))


def test_bytes_of_tokens_add_up_to_the_text():
    text = "今日は🐈 the cat\n"
    tokenizer = train_tokenizer([text * 3, "日本語"], 300)
    ids = tokenizer.encode(text).ids
    assert token_bytes(tokenizer)[ids].sum() == len(text.encode())
    assert token_bytes(tokenizer)[tokenizer.token_to_id("<|im_end|>")] == 0


def test_every_row_is_seen_once_per_epoch(config, tmp_path):
    import numpy as np

    path = tmp_path / "tokens.bin"
    np.arange(1001, dtype="<u2").tofile(path)
    rows = PackedRows(path, length=10, seed=3)
    first = np.concatenate([rows.batch(step, 10)[:, 0] for step in range(10)])
    assert sorted(first.tolist()) == list(range(0, 1000, 10))
    assert rows.first(4)[:, 0].tolist() == [0, 10, 20, 30]


def test_learning_rate_warms_up_and_decays(config):
    rates = [schedule(step, config) for step in range(config.steps)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] == pytest.approx(0.01, rel=0.2)
    stable = config.model_copy(update={"schedule": "warmup-stable-decay", "decay_steps": 20})
    rates = [schedule(step, stable) for step in range(config.steps)]
    assert set(rates[5:41]) == {1.0}
    assert rates[50] == pytest.approx(0.505)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = ", "not TOML"),
        ("steps = 3", "output"),
        ("wrong = 1", "Field required"),
        (VALID + "batch_rows = 3\nmicro_rows = 2\n" + SHAPE, "multiple of micro_rows"),
        (VALID, "either a"),
        (VALID + 'start_from = "y"\n' + SHAPE, "either a"),
        (VALID + "sequence_length = 64\ndecay_steps = 10\n" + SHAPE, "exceed steps"),
    ],
)
def test_bad_configuration_names_file_and_key(tmp_path, text, message):
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=message) as caught:
        PretrainConfig.load(path)
    assert str(path) in str(caught.value)
