"""A whole pretraining run on a tiny corpus."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.errors import ConfigurationError
from app.training import pretrain as module
from app.training.config import PretrainConfig
from app.training.corpus import PackedRows
from app.training.pretrain import learning_rate, pretrain
from app.transformer.attention import PackedCausal
from app.transformer.weights import load_model

SENTENCES = ["The cat sat on the mat. ", "今日は天気が良いので、散歩に行きました。"]


@pytest.fixture
def config(tmp_path: Path) -> PretrainConfig:
    corpus = tmp_path / "corpus.jsonl"
    records = [{"text": sentence * 4} for sentence in SENTENCES * 60]
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
            "validation_rows": 4,
        }
    )  # fmt: skip


def test_a_run_learns_and_its_model_loads_in_transformers(config):
    loss = pretrain(config)
    assert loss < 0.5 * math.log(320)
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


def test_an_interrupted_run_ends_with_the_same_weights(config, monkeypatch):
    pretrain(config)
    whole = (config.output / "model.safetensors").read_bytes()
    again = config.model_copy(update={"output": config.output.parent / "again"})
    rate = module.learning_rate

    def crash(step: int, of: PretrainConfig) -> float:
        if step == 33:
            raise KeyboardInterrupt
        return rate(step, of)

    monkeypatch.setattr(module, "learning_rate", crash)
    with pytest.raises(KeyboardInterrupt):
        pretrain(again)
    monkeypatch.undo()
    pretrain(again)
    assert (again.output / "model.safetensors").read_bytes() == whole


def test_every_row_is_seen_once_per_epoch(config, tmp_path):
    import numpy as np

    path = tmp_path / "tokens.bin"
    np.arange(1001, dtype="<u2").tofile(path)
    rows = PackedRows(path, length=10, held_out=4, seed=3)
    first = np.concatenate([rows.batch(step, 8)[:, 0] for step in range(12)])
    assert sorted(first.tolist()) == list(range(40, 1000, 10))
    assert rows.validation()[:, 0].tolist() == [0, 10, 20, 30]


def test_learning_rate_warms_up_and_decays(config):
    rates = [learning_rate(step, config) for step in range(config.steps)]
    assert rates[:5] == pytest.approx([2e-3, 4e-3, 6e-3, 8e-3, 1e-2])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] == pytest.approx(config.final_learning_rate, rel=0.1)


@pytest.mark.parametrize(
    ("text", "message"),
    [("steps = ", "not TOML"), ("steps = 3", "output"), ("wrong = 1", "Field required")],
)
def test_bad_configuration_names_file_and_key(tmp_path, text, message):
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=message) as caught:
        PretrainConfig.load(path)
    assert str(path) in str(caught.value)
