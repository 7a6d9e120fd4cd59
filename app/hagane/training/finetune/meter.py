"""Scores of steps, and the rates at which a run makes them."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from hagane.training.finetune.spec import TrainingPlan
from hagane.training.finetune.state_file import RunProgress
from hagane.training.report.listener import StepReport

Score = TypeVar("Score")


@dataclass(frozen=True)
class StepScore:
    """Mean loss per trained token, or per pair or judged example; share of most likely tokens."""

    loss: float
    accuracy: float


class Meter:
    """Measures rates since this process started, of steps and of validations apart."""

    def __init__(self, plan: TrainingPlan, progress: RunProgress, device: torch.device) -> None:
        self._plan, self._device = plan, device
        self._steps, self._tokens = progress.step, progress.trained_tokens
        self._started = time.monotonic()
        self._validations, self._validating = 0, 0.0

    def validation(self, validate: Callable[[], Score]) -> Score:
        """What `validate` gives; its time is that of a validation."""
        started = time.monotonic()
        score = validate()
        self._validating += time.monotonic() - started
        self._validations += 1
        return score

    def report(
        self,
        progress: RunProgress,
        train: StepScore,
        valid: StepScore | None,
        reinforcement: dict[str, float] | None = None,
    ) -> StepReport:
        """The report of the step that `progress` counts last."""
        stepping = time.monotonic() - self._started - self._validating
        step = stepping / (progress.step - self._steps)
        validation = self._validating / max(self._validations, 1)
        validations = sum(number > progress.step for number in self._plan.checkpoints)
        return StepReport(
            step=progress.step,
            steps=self._plan.steps,
            train_loss=train.loss,
            token_accuracy=train.accuracy,
            valid_loss=valid.loss if valid else None,
            valid_token_accuracy=valid.accuracy if valid else None,
            learning_rate=self._plan.rate(progress.step - 1),
            tokens_per_second=(progress.trained_tokens - self._tokens) / stepping,
            memory_bytes=_peak_memory(self._device),
            trained_tokens=progress.trained_tokens,
            eta_seconds=(self._plan.steps - progress.step) * step + validations * validation,
            reinforcement=reinforcement,
        )


def _peak_memory(device: torch.device) -> int:
    """Peak bytes of the GPU's memory, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
