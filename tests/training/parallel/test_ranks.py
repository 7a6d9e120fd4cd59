"""Runs of several processes: what they learn, and what becomes of them when one is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import torch
from hagane.lora.config import adapter_digest
from hagane.system.errors import ConfigurationError, RankLostError, TrainingError
from hagane.training.finetune.loop import finetune
from hagane.training.finetune.spec import FineTuneSpec, resolve
from hagane.training.parallel.ranks import Work, together
from hagane.training.pretrain.config import PretrainConfig
from hagane.training.pretrain.loop import pretrain
from hagane.training.report.listener import CheckpointReport, PretrainReport, StepReport
from safetensors.torch import load_file

SECONDS = 120
SENTENCES = ["The cat sat on the mat. ", "今日は天気が良いので、散歩に行きました。"]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def ranks() -> list[psutil.Process]:
    """The processes of this one that are ranks."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "hagane.training.parallel" in child.cmdline()]


@dataclass
class Recorder:
    """Listens, and kills a rank after `kill_after` steps."""

    kill_after: int | None = None
    steps: list[StepReport | PretrainReport] = field(default_factory=list)

    def progress(self, report: StepReport | PretrainReport) -> None:
        self.steps.append(report)
        if report.step == self.kill_after:
            ranks()[0].kill()

    def checkpoint(self, report: CheckpointReport) -> None:
        pass

    def interrupted(self) -> bool:
        return False


@pytest.fixture
def spec(tiny_model_dir: Path, tmp_path: Path) -> FineTuneSpec:
    lines = [
        {"prompt": f"What colour, {i}?", "completion": " The sky is blue." * (1 + i % 3)}
        for i in range(20)
    ]
    file = tmp_path / "train.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    return FineTuneSpec(
        model=tiny_model_dir, training_file=file, n_epochs=3, batch_size=4, learning_rate=5e-3,
        rank=4, checkpoint_every=4, threads=1, dtype="float32",
    )  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> PretrainConfig:
    corpus = tmp_path / "corpus.jsonl"
    lines = [json.dumps({"text": f"{i}: {SENTENCES[i % 2] * 4}"}) for i in range(120)]
    corpus.write_text("\n".join(lines))
    shape = {"hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate_size": 64,
             "context_length": 64}  # fmt: skip
    return PretrainConfig(
        output=tmp_path / "run", corpora=[{"path": corpus}], model=shape, vocab_size=320,
        sequence_length=32, batch_rows=4, steps=400, warmup_steps=5, learning_rate=1e-2,
        checkpoint_every=20, log_every=20, validation_rows=4, held_out=0.1, compile=False,
        threads=1, data_parallel=2,
    )  # fmt: skip


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns(spec, tmp_path):
    alone, shared = Recorder(), Recorder()
    one = finetune(spec, tmp_path / "one", alone)
    both = finetune(spec.model_copy(update={"data_parallel": 2}), tmp_path / "two", shared)
    losses = [step.train_loss for step in alone.steps]
    assert [step.train_loss for step in shared.steps] == pytest.approx(losses, rel=1e-3)
    assert losses[-1] < 0.5 * losses[0]
    assert both.valid_loss == pytest.approx(one.valid_loss, rel=1e-3)
    assert (both.steps, both.trained_tokens) == (one.steps, one.trained_tokens)
    weights = [load_file(r.directory / "adapter_model.safetensors") for r in (one, both)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-3, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [{"method": "kto", "learning_rate": 1e-3}, {"full": True, "learning_rate": 5e-4, "seeds": 2}],
    ids=["kto", "full"],
)
def test_two_ranks_learn_by_other_methods(spec, tmp_path, change):
    records = [
        {**json.loads(line), "label": bool(number % 2)}
        for number, line in enumerate(spec.training_file.read_text().splitlines())
    ]
    if "method" in change:
        spec.training_file.write_text("\n".join(map(json.dumps, records)))
    spec = spec.model_copy(update={"n_epochs": 1, **change})
    alone, shared = Recorder(), Recorder()
    one = finetune(spec, tmp_path / "one", alone)
    both = finetune(spec.model_copy(update={"data_parallel": 2}), tmp_path / "two", shared)
    losses = [step.train_loss for step in alone.steps]
    assert [step.train_loss for step in shared.steps] == pytest.approx(losses, rel=5e-3)
    assert both.valid_loss == pytest.approx(one.valid_loss, rel=5e-3)
    assert both.base_valid_loss == pytest.approx(one.base_valid_loss, rel=1e-4)


@pytest.mark.slow
def test_after_a_rank_was_lost_the_run_ends_with_the_same_bits(spec, tmp_path):
    spec = spec.model_copy(update={"data_parallel": 2, "neftune_alpha": 5.0})
    whole = finetune(spec, tmp_path / "whole", Recorder())
    with pytest.raises(RankLostError, match=r"rank 1 ended with signal 9: .* last checkpoint"):
        finetune(spec, tmp_path / "parts", Recorder(kill_after=6))
    assert ranks() == []
    rest = Recorder()
    parts = finetune(spec, tmp_path / "parts", rest)
    assert rest.steps[0].step == 5
    assert parts.digest == whole.digest


@pytest.mark.slow
def test_ranks_of_torchrun_make_the_bits_of_our_own(spec, tmp_path):
    """They need not be on one machine; three do not divide the examples evenly."""
    ours = finetune(spec.model_copy(update={"data_parallel": 3}), tmp_path / "ours", Recorder())
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3",
        "-m", "hagane.cli", "finetune", str(spec.training_file), "--model", str(spec.model),
        "--output", str(tmp_path / "theirs"), "--n-epochs", "3", "--batch-size", "4",
        "--learning-rate", "5e-3", "--rank", "4", "--checkpoint-every", "4", "--threads", "1",
    ]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=ONE_THREAD)
    assert adapter_digest(tmp_path / "theirs" / "adapter") == ours.digest
    assert done.stdout.count("the base's") == 1


@pytest.mark.slow
def test_the_command_says_which_rank_was_lost_and_goes_on(config, tmp_path):
    whole = config.model_copy(update={"output": tmp_path / "whole"})
    pretrain(whole, Recorder())
    values = json.loads(config.model_dump_json(exclude_none=True, exclude={"data_parallel"}))
    (corpus,), shape = values.pop("corpora"), values.pop("model")
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    for head, table in (("[model]", shape), ("[[corpora]]", corpus)):
        lines += [head, *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    (tmp_path / "run.toml").write_text("\n".join(lines))
    command = [
        sys.executable, "-m", "hagane.cli", "pretrain", str(tmp_path / "run.toml"),
        "--data-parallel", "2",
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ONE_THREAD) as process:
        deadline = time.monotonic() + SECONDS
        while not (config.output / "state" / "checkpoint.pt").is_file():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        ranks()[0].kill()
        _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 2
    assert "rank 1 ended with signal 9" in said
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=ONE_THREAD)
    names = "model.safetensors"
    assert (config.output / names).read_bytes() == (whole.output / names).read_bytes()


def test_ranks_without_work_are_refused_by_name(spec):
    values = spec.model_dump() | {"data_parallel": 5}
    with pytest.raises(ValueError, match=r"data_parallel 5 is more than the 4 examples"):
        FineTuneSpec.model_validate(values)
    auto = FineTuneSpec.model_validate(values | {"batch_size": "auto"})
    with pytest.raises(TrainingError, match=r"data_parallel 5 is more than the 4 examples"):
        resolve(auto, examples=18, hidden_size=64)
    with pytest.raises(ValueError, match="data_parallel goes with training on examples"):
        FineTuneSpec.model_validate(values | {"batch_size": 8, "method": "reinforcement"})


def test_other_ranks_than_torchrun_has_started_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    work = Work("pretrain", "{}", "run")
    with pytest.raises(ConfigurationError, match="there is no RANK: start with torchrun"):
        together(2, "cpu", work).__enter__()
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ConfigurationError, match="data_parallel 3 is not the 2"):
        together(3, "cpu", work).__enter__()
