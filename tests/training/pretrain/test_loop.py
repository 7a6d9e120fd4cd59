"""A whole pretraining run on a tiny corpus."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hagane.data.documents import Corpus
from hagane.models.attention import PackedCausal
from hagane.system.errors import ConfigurationError, TrainingInterrupted
from hagane.training.pretrain.config import PretrainConfig, Shape
from hagane.training.pretrain.loop import pretrain
from hagane.training.pretrain.optimizer import schedule
from hagane.training.pretrain.shards import MixedRows, PackedRows
from hagane.training.report.listener import PretrainReport
from hagane.weights.load import load_model
from transformers import AutoModelForCausalLM, AutoTokenizer


class Told:
    """Keeps what a run reports, and ends it after `last` steps."""

    def __init__(self, last: int | None = None) -> None:
        self.reports: list[PretrainReport] = []
        self.asked, self.last = 0, last

    def progress(self, report: PretrainReport) -> None:
        self.reports.append(report)

    def interrupted(self) -> bool:
        self.asked += 1
        return self.asked == self.last


SENTENCES = ["The cat sat on the mat. ", "今日は天気が良いので、散歩に行きました。"]

VALID = 'output = "x"\nsteps = 3\ncorpora = [{path = "x"}]\n'
SHAPE = (
    "[model]\nhidden_size = 8\nlayers = 1\nheads = 1\nkv_heads = 1\n"
    "intermediate_size = 8\ncontext_length = 64\n"
)


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny matrices are not worth a second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
            "warmup_steps": 5, "optimizer": "adamw", "learning_rate": 1e-2, "checkpoint_every": 20,
            "validation_rows": 4, "held_out": 0.1, "compile": False, "samples": ["The cat"],
        }
    )  # fmt: skip


def test_a_run_learns_and_its_model_loads_in_transformers(config):
    told = Told()
    scores = pretrain(config, told).bits_per_byte
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
    assert [report.step for report in told.reports] == [20, 40, 60]
    assert told.reports[-1].bits_per_byte == scores
    assert told.reports[-1].samples[0].startswith("The cat sat")
    assert told.reports[-1].loss < told.reports[0].loss
    assert (config.output / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_interrupted_run_ends_with_the_same_weights(config, optimizer):
    parts = {"optimizer": optimizer, "micro_rows": 2, "steps": 24, "checkpoint_every": 8}
    config = config.model_copy(update=parts | {"log_every": 4})
    pretrain(config, Told())
    again = config.model_copy(update={"output": config.output.parent / "again"})
    with pytest.raises(TrainingInterrupted):
        pretrain(again, Told(last=13))
    told = Told()
    pretrain(again, told)
    assert told.reports[0].step == 16
    assert files(again) == files(config)


def files(config: PretrainConfig) -> tuple[bytes, list[float]]:
    """The weights, and the loss curve without the times and the step of the interruption."""
    lines = (config.output / "loss.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    losses = [entry["loss"] for entry in entries if entry["step"] % config.log_every == 0]
    return (config.output / "model.safetensors").read_bytes(), losses


def write(config: PretrainConfig, path: Path) -> Path:
    """The run as a TOML file."""
    values = json.loads(config.model_dump_json(exclude_none=True))
    tables = {key: value for key, value in values.items() if key in ("corpora", "model")}
    lines = [f"{key} = {json.dumps(v)}" for key, v in values.items() if key not in tables]
    lines += ["[model]", *(f"{key} = {json.dumps(v)}" for key, v in tables["model"].items())]
    for corpus in tables["corpora"]:
        lines += ["[[corpora]]", *(f"{key} = {json.dumps(v)}" for key, v in corpus.items())]
    path.write_text("\n".join(lines))
    return path


def test_a_killed_run_ends_with_the_same_weights(config, tmp_path):
    config = config.model_copy(update={"checkpoint_every": 4, "steps": 24, "log_every": 4})
    pretrain(config, Told())
    again = config.model_copy(update={"output": tmp_path / "again"})
    command = [
        sys.executable,
        "-m",
        "hagane.cli",
        "pretrain",
        str(write(again, tmp_path / "c.toml")),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:
        while not (again.output / "state" / "checkpoint.pt").is_file():
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    pretrain(again, Told())
    assert files(again) == files(config)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(config, tmp_path):
    config = config.model_copy(update={"steps": 12, "checkpoint_every": 6, "log_every": 1})
    alone = pretrain(config, Told()).bits_per_byte
    shared = config.model_copy(update={"output": tmp_path / "shared"})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               "--nproc-per-node", "2", "-m", "hagane.cli", "pretrain"]  # fmt: skip
    subprocess.run(
        [*command, str(write(shared, tmp_path / "c.toml"))],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    (_, losses), (_, others) = files(config), files(shared)
    assert len(losses) == 12
    assert others == pytest.approx(losses, abs=1e-4)
    last = json.loads((shared.output / "loss.jsonl").read_text().splitlines()[-1])
    assert last["bits_per_byte"] == pytest.approx(alone, abs=2e-3)


def test_a_second_stage_starts_where_the_first_ended(config):
    first = pretrain(config, Told()).bits_per_byte
    second = config.model_copy(
        update={"model": None, "start_from": config.output, "output": config.output / "second",
                "learning_rate": 1e-4, "steps": 5, "warmup_steps": 0}
    )  # fmt: skip
    assert pretrain(second, Told()).bits_per_byte["corpus"] < first["corpus"] + 0.05
    tokenizers = [Path(c.output / "tokenizer.json").read_text() for c in (config, second)]
    assert tokenizers[0] == tokenizers[1]
    with pytest.raises(ConfigurationError, match="context length of 64"):
        pretrain(
            second.model_copy(update={"sequence_length": 65, "output": config.output / "3"}), Told()
        )


def test_micro_batches_change_nothing_but_memory(config):
    config = config.model_copy(update={"steps": 16, "checkpoint_every": 16})
    whole = pretrain(config, Told()).bits_per_byte
    parts = {"micro_rows": 1, "output": config.output.parent / "parts"}
    assert pretrain(config.model_copy(update=parts), Told()).bits_per_byte[
        "corpus"
    ] == pytest.approx(whole["corpus"], abs=2e-3)


@pytest.fixture
def shard(tmp_path: Path):
    def make(count: int, first: int) -> PackedRows:
        path = tmp_path / f"{first}.bin"
        np.arange(first, first + count * 10 + 1, dtype="<u2").tofile(path)
        return PackedRows(path, length=10, seed=3)

    return make


def test_every_row_is_seen_once_per_epoch(shard):
    rows = shard(100, 0)
    first = np.concatenate([rows.batch(step, 10)[:, 0] for step in range(10)])
    assert sorted(first.tolist()) == list(range(0, 1000, 10))
    assert rows.first(4)[:, 0].tolist() == [0, 10, 20, 30]


def test_corpora_are_mixed_by_their_shares(shard):
    shards = [shard(100, 0), shard(30, 20_000), shard(7, 40_000)]
    mixed = MixedRows(shards, [2.0, 5.0, 0.001], seed=1)
    first = np.concatenate([mixed.batch(step, 32)[:, 0] for step in range(700)])
    counts = [int(((first >= low) & (first < low + 20_000)).sum()) for low in (0, 20_000, 40_000)]
    assert counts[0] == pytest.approx(22_400 * 2 / 7, abs=64)
    assert counts[2] in (2, 3, 4)
    # Each shard is walked through in order of its own epochs, whoever comes between.
    assert first[first < 20_000][:100].tolist() == shards[0].batch(0, 100)[:, 0].tolist()
    again = MixedRows(shards, [2.0, 5.0, 0.001], seed=1)
    assert again.batch(333, 32)[:, 0].tolist() == first[333 * 32 : 334 * 32].tolist()


def test_a_corpus_is_weighted_by_epochs_or_by_weight(config, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("\n".join(f"line {i} of another corpus" for i in range(3000)))
    corpora = (config.corpora[0].model_copy(update={"epochs": 1.0, "weight": 3.0}),
               Corpus(path=other, weight=1.0))  # fmt: skip
    config = config.model_copy(update={"corpora": list(corpora), "steps": 5, "warmup_steps": 1})
    told = Told()
    pretrain(config, told)
    assert set(told.reports[-1].bits_per_byte) == {"corpus", "other"}


@pytest.mark.parametrize(("size", "vocab"), [(10**7, 8192), (10**8, 32_000), (5 * 10**5, 512)])
def test_a_shape_of_so_many_parameters(size, vocab):
    shape = Shape.of_size(size, vocab, 256)
    assert shape.parameters(vocab) == pytest.approx(size, rel=0.15)
    assert 48 <= shape.hidden_size / shape.layers <= 80
    assert shape.hidden_size == 64 * shape.heads
    assert shape.context_length == 256


def test_the_built_in_model_is_a_shape_of_ten_million():
    assert Shape.of_size(10**7, 8192, 1024).model_dump() == {
        "hidden_size": 320, "layers": 6, "heads": 5, "kv_heads": 5, "intermediate_size": 864,
        "context_length": 1024,
    }  # fmt: skip


def test_a_size_may_be_written_short(config):
    values = config.model_dump(exclude={"model"}) | {"parameters": "1.5M"}
    assert PretrainConfig.model_validate(values).parameters == 1_500_000
    with pytest.raises(ConfigurationError, match="too few"):
        Shape.of_size(20_000, 65_536, 64)


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
        (VALID + "batch_rows = 4\ndata_parallel = 3\n" + SHAPE, "multiple of data_parallel 3"),
        (VALID, "either a"),
        (VALID + 'start_from = "y"\n' + SHAPE, "either a"),
        (VALID + "context_length = 64\n" + SHAPE, "goes with parameters"),
        (
            'output = "x"\nsteps = 3\nparameters = "1M"\n'
            'corpora = [{path = "x", weight = 1}, {path = "y"}]',
            "every corpus a weight",
        ),
        (VALID + "sequence_length = 64\ndecay_steps = 10\n" + SHAPE, "exceed steps"),
    ],
)
def test_bad_configuration_names_file_and_key(tmp_path, text, message):
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=message) as caught:
        PretrainConfig.load(path)
    assert str(path) in str(caught.value)
