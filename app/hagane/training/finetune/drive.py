"""The steps of any run on a model with an adapter, with its checkpoints, from start to result."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from hagane.lora.config import adapter_digest
from hagane.system.errors import TrainingInterrupted
from hagane.system.files import commit
from hagane.training.finetune.faults import require_finite
from hagane.training.finetune.meter import Meter, StepScore
from hagane.training.finetune.model import FineTuneModel
from hagane.training.finetune.spec import FineTuneSpec, TrainingPlan
from hagane.training.finetune.state_file import RunProgress, StateFile
from hagane.training.parallel.group import ALONE, Group
from hagane.training.report.listener import CheckpointReport, FineTuneResult, Listener

# The most time that a crash between two checkpoints may lose.
_SAVE_SECONDS = 60.0
_CLIP = 1.0


@dataclass(frozen=True)
class StepUpdate:
    """What a step did: its score, the tokens that went through the model, more figures by name."""

    score: StepScore
    tokens: int
    figures: Mapping[str, float] = field(default_factory=dict)


class Run(Protocol):
    """One way to train. Everything it draws at random follows from the seed and the step.

    `digest` is that of the data. See `finetune.loop` for an example.
    """

    @property
    def spec(self) -> FineTuneSpec: ...
    @property
    def plan(self) -> TrainingPlan: ...
    @property
    def model(self) -> FineTuneModel: ...
    @property
    def optimizer(self) -> torch.optim.Optimizer: ...
    @property
    def digest(self) -> str: ...

    def update(self, step: int) -> StepUpdate:
        """Make the step after `step` steps. Raises TrainingError for what is not finite."""

    def validate(self) -> StepScore:
        """Score the held-out examples, lower being better."""

    def base_loss(self) -> float:
        """What `validate` gives for the base model."""


def drive(run: Run, directory: Path, listener: Listener, group: Group = ALONE) -> FineTuneResult:
    """Start or resume the run in `directory`, and copy its best checkpoint to the result.

    All ranks of `group` do; the first writes and reports.
    """
    with group.leader_first():
        state = StateFile(directory / "state", run.spec, run.digest)
        progress = state.load(run.model, run.optimizer)
    meter, saved = Meter(run.plan, progress, run.model.device), time.monotonic()
    if progress.base_valid_loss is None:
        progress.base_valid_loss = meter.validation(run.base_loss)
    while not _finished(run, progress):
        update = run.update(progress.step)
        progress.advance(update.tokens)
        saving = progress.step in run.plan.checkpoints
        valid = meter.validation(run.validate) if saving else None
        report = meter.report(progress, update.score, valid, dict(update.figures) or None)
        if valid is not None:
            progress.score(valid.loss)
        if group.leads:
            listener.progress(report)
            if valid is not None:
                # Before the state is saved: a crash in between reports it twice instead of never.
                listener.checkpoint(_save(run, directory, progress.step, _metrics(update, valid)))
        stopping = group.any(listener.interrupted()) and not _finished(run, progress)
        due = saving or stopping or time.monotonic() > saved + _SAVE_SECONDS
        if group.leads and due:
            state.save(run.model, run.optimizer, progress)
            saved = time.monotonic()
        if stopping:
            raise TrainingInterrupted(f"stopped after step {progress.step}, as requested")
    return _result(run.spec.full, directory, progress, group)


def apply(
    model: FineTuneModel, optimizer: torch.optim.Optimizer, rate: float, *values: float
) -> None:
    """Update the weights by their clipped gradients. Raises TrainingError for what is not finite.

    `values` are what else must be finite.
    """
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
    require_finite(*values, float(norm))
    optimizer.param_groups[0]["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _finished(run: Run, progress: RunProgress) -> bool:
    """Whether all steps are done, or too many checkpoints were no better."""
    patience = run.spec.patience or math.inf
    return progress.step >= run.plan.steps or progress.stale >= patience


def _checkpoint(directory: Path, step: int) -> Path:
    return directory / "checkpoints" / f"step-{step}"


def _save(run: Run, directory: Path, step: int, metrics: Mapping[str, float]) -> CheckpointReport:
    """Write the checkpoint after `step` steps."""
    checkpoint = _checkpoint(directory, step)
    run.model.save(checkpoint)
    return CheckpointReport(step, checkpoint, dict(metrics))


def _metrics(update: StepUpdate, valid: StepScore) -> dict[str, float]:
    return {
        "train_loss": update.score.loss,
        "train_mean_token_accuracy": update.score.accuracy,
        "valid_loss": valid.loss,
        "valid_mean_token_accuracy": valid.accuracy,
        **update.figures,
    }


def copy_result(source: Path, final: Path) -> None:
    """Copy the files of an adapter or model, each atomically."""
    final.mkdir(exist_ok=True)
    for file in sorted(source.iterdir()):
        partial = final / f".{file.name}.partial"
        shutil.copyfile(file, partial)
        commit(partial, final / file.name)


def _result(full: bool, directory: Path, progress: RunProgress, group: Group) -> FineTuneResult:
    final = directory / ("model" if full else "adapter")
    with group.leader_first():
        if group.leads:
            copy_result(_checkpoint(directory, progress.best_step), final)
    return FineTuneResult(
        directory=final,
        digest=None if full else adapter_digest(final),
        step=progress.best_step,
        trained_tokens=progress.trained_tokens,
        base_valid_loss=progress.base_valid_loss or 0.0,
        valid_loss=progress.valid_loss,
        steps=progress.step,
    )
