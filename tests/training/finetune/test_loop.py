"""Whole fine-tuning runs of a tiny model."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from hagane.lora.files import load_adapter
from hagane.lora.widen import widen_directory
from hagane.system.errors import TrainingError, TrainingInterrupted
from hagane.training.finetune import model as model_module
from hagane.training.finetune import state_file
from hagane.training.finetune.examples import report
from hagane.training.finetune.loop import finetune
from hagane.training.finetune.spec import FineTuneSpec
from hagane.training.finetune.state_file import StateFile
from hagane.training.report.listener import CheckpointReport, StepReport
from hagane.weights.load import load_model
from hagane.weights.sources.config import load_config
from torch.utils.checkpoint import checkpoint

from tests.support.adapted import adapted_pair

SKY = "The sky is blue."


@dataclass
class Recorder:
    """Listens, and asks for an end after `stop_after` steps."""

    stop_after: int | None = None
    steps: list[StepReport] = field(default_factory=list)
    checkpoints: list[CheckpointReport] = field(default_factory=list)

    def progress(self, report: StepReport) -> None:
        self.steps.append(report)

    def checkpoint(self, report: CheckpointReport) -> None:
        self.checkpoints.append(report)

    def interrupted(self) -> bool:
        return len(self.steps) == self.stop_after


def conversation(question: str, answer: str) -> dict:
    roles = ("user", question), ("assistant", answer)
    return {"messages": [{"role": role, "content": content} for role, content in roles]}


def write_lines(path: Path, records: list[dict]) -> Path:
    path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in records))
    return path


@pytest.fixture
def spec(tiny_model_dir: Path, tmp_path: Path) -> FineTuneSpec:
    records = [conversation(f"What colour, {i}?", SKY * (1 + i % 3)) for i in range(20)]
    return FineTuneSpec(
        model=tiny_model_dir,
        training_file=write_lines(tmp_path / "train.jsonl", records),
        n_epochs=4,
        batch_size=4,
        learning_rate=5e-3,
        rank=4,
        checkpoint_every=5,
        threads=1,
    )


def test_a_run_learns_and_says_how_it_went(spec, tmp_path):
    listener = Recorder()
    result = finetune(spec, tmp_path / "run", listener)
    assert result.valid_loss < 0.5 * result.base_valid_loss
    assert [report.step for report in listener.steps] == list(range(1, 16))
    assert [report.step for report in listener.checkpoints] == [5, 10, 15]
    assert listener.steps[-1].trained_tokens == result.trained_tokens
    assert result.directory == tmp_path / "run" / "adapter"
    assert_best_is_kept(result, listener)


def test_a_run_ends_early_where_checkpoints_get_no_better(spec, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "When?", "completion": "qz qz qz qz"}\n')
    change = {"validation_file": other, "patience": 2, "checkpoint_every": 1}
    patient = spec.model_copy(update=change)
    listener = Recorder()
    whole = finetune(patient, tmp_path / "whole", listener)
    assert whole.steps == len(listener.steps) == whole.step + 2 < 19
    with pytest.raises(TrainingInterrupted):
        finetune(patient, tmp_path / "parts", Recorder(stop_after=whole.step + 1))
    parts = finetune(patient, tmp_path / "parts", Recorder())
    assert (parts.steps, parts.digest) == (whole.steps, whole.digest)


def test_the_best_of_several_seeds_is_kept(spec, tmp_path):
    swept = spec.model_copy(update={"seeds": 2, "n_epochs": 2})
    listener = Recorder()
    whole = finetune(swept, tmp_path / "whole", listener)
    assert [report.step for report in listener.steps] == list(range(1, 17))
    assert {report.steps for report in listener.steps} == {16}
    assert whole.steps == 16
    assert_best_is_kept(whole, listener)
    losses = [r.metrics["valid_loss"] for r in listener.checkpoints]
    assert len(set(losses)) == len(losses) == 4
    with pytest.raises(TrainingInterrupted):
        finetune(swept, tmp_path / "parts", Recorder(stop_after=10))
    rest = Recorder()
    parts = finetune(swept, tmp_path / "parts", rest)
    assert [report.step for report in rest.steps] == list(range(11, 17))
    assert (parts.step, parts.digest) == (whole.step, whole.digest)


@pytest.mark.parametrize("method", ["orpo", "kto"])
def test_judgements_are_learned(spec, tmp_path, method):
    records = []
    for number in range(12):
        good, bad = (conversation(f"What colour, {number}?", a) for a in (SKY, "Who knows?"))
        prompt = good["messages"][:1]
        pair = {"prompt": prompt, "chosen": good["messages"][1:], "rejected": bad["messages"][1:]}
        judged = [good | {"label": True}, bad | {"label": False}]
        records += judged if method == "kto" else [pair]
    file = write_lines(tmp_path / "judged.jsonl", records)
    changed = {"method": method, "training_file": file, "learning_rate": 2e-3, "n_epochs": 2}
    result = finetune(spec.model_copy(update=changed), tmp_path / "run", Recorder())
    assert result.valid_loss < 0.9 * result.base_valid_loss


def test_tokens_of_a_widened_vocabulary_are_learned(spec, tmp_path):
    ids = widen_directory(spec.model, tmp_path / "wide", ["<sky>", "<sea>"])
    records = [conversation(f"What colour, {i}?", ("<sky>", "<sea>")[i % 2]) for i in range(20)]
    file = write_lines(tmp_path / "wide.jsonl", records)
    change = {"model": tmp_path / "wide", "training_file": file, "learning_rate": 2e-2}
    wide = spec.model_copy(update=change | {"trained_tokens": ("<sky>", "<sea>")})
    result = finetune(wide, tmp_path / "run", Recorder())
    assert result.valid_loss < 0.5 * result.base_valid_loss
    stored = load_adapter(result.directory, load_config(wide.model)).tokens["embed_tokens"]
    assert stored.ids == tuple(ids.values())
    before = load_model(wide.model, device="cpu", dtype=torch.float32, quantization=None)[0]
    rows = before.model.embed_tokens(torch.tensor(stored.ids))
    assert not torch.isclose(stored.values, rows).all(dim=1).any()
    with pytest.raises(TrainingError, match=r"'<sky>' is \d+ tokens.*hagane widen"):
        report(wide.model_copy(update={"model": spec.model}))


@pytest.mark.slow
def test_a_teacher_is_learned_from(spec, tmp_path):
    adapted_pair(spec.model, tmp_path)
    change = {"teacher": tmp_path / "merged", "teacher_weight": 1.0, "n_epochs": 10}
    taught = spec.model_copy(update=change)
    result = finetune(taught, tmp_path / "run", Recorder())
    assert result.valid_loss < 0.9 * result.base_valid_loss
    with pytest.raises(TrainingInterrupted):
        finetune(taught, tmp_path / "parts", Recorder(stop_after=1))
    assert finetune(taught, tmp_path / "parts", Recorder()).digest == result.digest


def test_a_run_that_overfits_ends_with_its_best_checkpoint(spec, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "When?", "completion": "qz qz qz qz"}\n')
    listener = Recorder()
    result = finetune(
        spec.model_copy(update={"validation_file": other}), tmp_path / "run", listener
    )
    assert result.step < 15
    assert_best_is_kept(result, listener)


def assert_best_is_kept(result, listener):
    best = min(listener.checkpoints, key=lambda report: report.metrics["valid_loss"])
    assert (result.step, result.valid_loss) == (best.step, best.metrics["valid_loss"])
    for file in result.directory.iterdir():
        assert file.read_bytes() == (best.directory / file.name).read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"dtype": "bfloat16", "quantize": "int4"},
        {"dtype": "bfloat16", "quantize": "int8"},
        {"full": True, "learning_rate": 1e-3},
        {"neftune_alpha": 5.0},
        {"trained_tokens": ("S", "k"), "dtype": "bfloat16", "quantize": "int8"},
    ],
    ids=["lora", "int4", "int8", "full", "noise", "tokens"],
)
def test_an_interrupted_run_ends_with_the_same_bits(spec, tmp_path, change):
    spec = spec.model_copy(update=change)
    whole = finetune(spec, tmp_path / "whole", Recorder())
    with pytest.raises(TrainingInterrupted):
        finetune(spec, tmp_path / "parts", Recorder(stop_after=7))
    parts = finetune(spec, tmp_path / "parts", Recorder())
    assert parts.valid_loss == whole.valid_loss
    assert parts.trained_tokens == whole.trained_tokens
    name = "model.safetensors" if spec.full else "adapter_model.safetensors"
    assert (parts.directory / name).read_bytes() == (whole.directory / name).read_bytes()


def test_activations_are_computed_twice_where_memory_demands_it(spec, tmp_path, monkeypatch):
    calls = []

    def counted(*arguments, **options):
        calls.append(arguments)
        return checkpoint(*arguments, **options)

    monkeypatch.setattr(model_module, "checkpoint", counted)
    whole = finetune(spec, tmp_path / "whole", Recorder())
    assert not calls
    needs = report(spec)
    sparing = finetune(spec, tmp_path / "sparing", Recorder(), lambda: needs.memory_bytes - 1)
    assert calls
    assert sparing.digest == whole.digest
    calls.clear()
    asked = spec.model_copy(update={"checkpointing": True})
    assert finetune(asked, tmp_path / "asked", Recorder()).digest == whole.digest
    assert calls
    with pytest.raises(TrainingError, match="shorten sequence_length") as caught:
        finetune(spec, tmp_path / "none", Recorder(), lambda: needs.least_memory_bytes // 2)
    assert caught.value.code == "out_of_memory"


@pytest.mark.parametrize("after_rename", [False, True])
def test_a_crash_while_a_checkpoint_is_put_in_place(spec, tmp_path, monkeypatch, after_rename):
    whole = finetune(spec, tmp_path / "whole", Recorder())
    commit, calls = state_file.commit, []

    def crash(partial: Path, final: Path) -> None:
        calls.append(final)
        if len(calls) < 2 or after_rename:
            commit(partial, final)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(state_file, "commit", crash)
    with pytest.raises(KeyboardInterrupt):
        finetune(spec, tmp_path / "parts", Recorder())
    monkeypatch.undo()
    listener = Recorder()
    parts = finetune(spec, tmp_path / "parts", listener)
    assert listener.steps[0].step == (11 if after_rename else 6)
    assert parts.digest == whole.digest


def test_a_full_disk_is_said_and_leaves_the_last_checkpoint(spec, tmp_path, monkeypatch):
    listener = Recorder()

    class Filling(Recorder):
        def progress(self, report: StepReport) -> None:
            if report.step == 10:
                (tmp_path / "run" / "state" / "checkpoint.partial").symlink_to("/dev/full")

    with pytest.raises(TrainingError, match="disk is full") as caught:
        finetune(spec, tmp_path / "run", Filling())
    assert caught.value.code == "disk_full"
    (tmp_path / "run" / "state" / "checkpoint.partial").unlink()
    finetune(spec, tmp_path / "run", listener)
    assert listener.steps[0].step == 6


def test_a_loss_that_is_no_number_ends_the_run(spec, tmp_path):
    ruinous = spec.model_copy(update={"learning_rate": float("nan")})
    with pytest.raises(TrainingError, match="lower learning_rate") as caught:
        finetune(ruinous, tmp_path / "run", Recorder())
    assert caught.value.code == "non_finite_loss"


def test_a_deleted_base_is_named(spec, tmp_path):
    gone = spec.model_copy(update={"model": tmp_path / "gone"})
    with pytest.raises(TrainingError, match="gone") as caught:
        finetune(gone, tmp_path / "run", Recorder())
    assert caught.value.code == "invalid_model"


def test_a_bad_file_is_reported_by_line(spec, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": []}\nnonsense\n')
    with pytest.raises(TrainingError, match="line 1: messages is empty; line 2: is not JSON"):
        finetune(spec.model_copy(update={"training_file": bad}), tmp_path / "run", Recorder())


def test_a_directory_of_another_run_is_not_gone_on_with(spec, tmp_path):
    with pytest.raises(TrainingInterrupted):
        finetune(spec, tmp_path / "run", Recorder(stop_after=1))
    other = spec.model_copy(update={"seed": 1})
    with pytest.raises(TrainingError, match="other seed"):
        finetune(other, tmp_path / "run", Recorder())
    with spec.training_file.open("a") as file:
        file.write("\n" + json.dumps(conversation("One more?", SKY)))
    with pytest.raises(TrainingError, match="other examples"):
        finetune(spec, tmp_path / "run", Recorder())


def test_the_directory_of_a_run_may_be_used_with_other_threads(spec, tmp_path):
    StateFile(tmp_path, spec.model_copy(update={"threads": 1}), "digest")
    StateFile(tmp_path, spec.model_copy(update={"threads": 2}), "digest")
    with pytest.raises(TrainingError, match="other seed"):
        StateFile(tmp_path, spec.model_copy(update={"seed": 1}), "digest")
