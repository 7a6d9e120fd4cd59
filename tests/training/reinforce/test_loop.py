"""Whole runs of reinforcement learning with an engine alongside, on a tiny model."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hagane.kernels import cpu
from hagane.system.errors import TrainingError, TrainingInterrupted
from hagane.training.jobs import estimates
from hagane.training.jobs.answering_engine import SampledAnswer
from hagane.training.jobs.estimates import MICRO_TOKENS, REPEATED_TOKENS
from hagane.training.reinforce.loop import _Lesson, _micro_batches, reinforce
from hagane.training.reinforce.rollouts import Rollout
from hagane.training.reinforce.spec import ReinforceSpec
from hagane.training.reinforce.tasks import PromptTask, load_tasks, report_tasks
from hagane.training.report.listener import CheckpointReport, StepReport
from hagane.weights.sources.config import load_config

# The part of the answer's characters that are the wanted one.
PROGRAM = """
def grade(sample, item):
    text = sample["output_text"]
    return sum(letter == item["answer"] for letter in text) / max(len(text), 1)
"""


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


@pytest.fixture
def spec(tiny_model_dir: Path, tmp_path: Path) -> ReinforceSpec:
    file = tmp_path / "tasks.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"Say {i}", "answer": "e"}) for i in range(8)))
    return ReinforceSpec(
        model=tiny_model_dir,
        training_file=file,
        validation_file=file,
        grader={"type": "python", "name": "share", "source": PROGRAM},
        n_epochs=3,
        batch_size=8,
        group_size=16,
        learning_rate=2e-2,
        max_completion_tokens=4,
        eval_interval=2,
        kl=0.0,
        rank=4,
        threads=1,
    )


@pytest.mark.parametrize(
    ("quantize", "dtype"),
    [("int8", "bfloat16"), pytest.param("none", "float32", marks=pytest.mark.slow)],
)
def test_a_run_rewards_and_its_probabilities_are_those_served(spec, tmp_path, quantize, dtype):
    listener = Recorder()
    changed = {"kl": 0.05, "n_epochs": 2, "quantize": quantize, "dtype": dtype}
    result = reinforce(spec.model_copy(update=changed), tmp_path / "run", listener)
    assert [report.step for report in listener.steps] == [1, 2]
    assert [report.step for report in listener.checkpoints] == [2]
    for report in listener.steps:
        figures = report.reinforcement
        assert report.train_loss == -figures["train_reward_mean"] < 0
        assert figures["grader_error_share"] == figures["clipped_share"] == 0
        # Bits of the very tokens that were sampled, with a changed adapter too.
        assert figures["logprob_difference_max"] <= (0 if cpu.available() else 0.1)
    assert listener.steps[0].reinforcement["divergence_mean"] == 0
    assert listener.steps[1].reinforcement["divergence_mean"] > 0
    assert (result.step, result.directory) == (2, tmp_path / "run" / "adapter")


@pytest.mark.slow
def test_a_stopped_run_ends_with_the_same_bits(spec, tmp_path):
    whole = reinforce(spec, tmp_path / "whole", Recorder())
    with pytest.raises(TrainingInterrupted):
        reinforce(spec, tmp_path / "parts", Recorder(stop_after=1))
    parts = reinforce(spec, tmp_path / "parts", Recorder())
    assert (parts.digest, parts.valid_loss) == (whole.digest, whole.valid_loss)


@pytest.mark.slow
def test_rewards_rise(spec, tmp_path):
    listener = Recorder()
    result = reinforce(
        spec.model_copy(update={"n_epochs": 40, "eval_interval": 20}), tmp_path / "run", listener
    )
    rewards = [report.reinforcement["train_reward_mean"] for report in listener.steps]
    assert sum(rewards[:5]) / 5 < 0.1
    assert sum(rewards[-5:]) / 5 > 0.5
    assert -result.valid_loss > 0.5 > 5 * -result.base_valid_loss


def test_a_report_names_what_graders_miss(spec, tmp_path):
    grader = {"type": "string_check", "name": "same", "operation": "eq",
              "input": "{{ sample.output_text }}", "reference": "{{ item.answer }}"}  # fmt: skip
    checked = ReinforceSpec(**spec.model_dump() | {"grader": grader, "validation_file": None})
    assert report_tasks(checked).problems == []
    assert report_tasks(checked).held_out == 2
    spec.training_file.write_text(
        '{"prompt": "Say"}\n{"messages": [{"role": "assistant", "content": "I"}], "answer": "e"}\n'
        '{"prompt": "' + "long " * 300 + '", "answer": "e"}'
    )
    problems = dict(report_tasks(checked).problems)
    assert "no 'answer'" in problems[1]
    assert "ends with the assistant's" in problems[2]
    assert "leave room for an answer of 4" in problems[3]
    with pytest.raises(TrainingError, match="line 1"):
        reinforce(checked, tmp_path / "run", Recorder())


@pytest.mark.parametrize(("prompt", "answer", "group"), [(600, 3, 128), (20, 50, 40), (9000, 2, 3)])
def test_rows_of_a_pass_are_bounded_in_layers_and_in_attention(prompt, answer, group):
    task = PromptTask(tuple(range(prompt)), {}, b"")
    rollout = Rollout(task, SampledAnswer((1,) * answer, (0.0,) * answer, ended=False), 1.0)
    lessons = [_Lesson(rollout, float(number)) for number in range(group)]
    parts = _micro_batches(lessons)
    assert [lesson for part in parts for lesson in part] == lessons
    for part in parts:
        rows = prompt + answer * len(part)
        assert len(part) == 1 or rows <= MICRO_TOKENS
        assert len(part) == 1 or (prompt + answer) * len(part) <= REPEATED_TOKENS


@pytest.mark.slow
def test_the_engine_s_part_of_the_memory_is_not_the_run_s(spec, tmp_path):
    longest = max(map(len, load_tasks(spec).training)) + spec.max_completion_tokens
    shape = load_config(spec.model)
    least = estimates.memory(shape, spec, longest, checkpointing=True)
    free = least + estimates.answering(shape, spec, longest) // 2
    with pytest.raises(TrainingError, match="are free") as caught:
        reinforce(spec, tmp_path / "run", Recorder(), lambda: free)
    assert caught.value.code == "out_of_memory"
