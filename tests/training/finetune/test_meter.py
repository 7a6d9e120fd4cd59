"""Rates since the start of this process, and what they say of the time that is left."""

from __future__ import annotations

import pytest
import torch
from hagane.training.finetune.meter import Meter, StepScore
from hagane.training.finetune.spec import TrainingPlan
from hagane.training.finetune.state_file import RunProgress

PLAN = TrainingPlan(
    epochs=1,
    batch_size=4,
    steps=10,
    warmup_steps=1,
    learning_rate=1e-3,
    beta=0.1,
    checkpoint_every=5,
)


@pytest.mark.parametrize("before", [0, 3])
def test_the_time_left_is_that_of_the_steps_left_at_the_rate_so_far(before):
    """After a resumption too, whose earlier steps took no time of this process."""
    progress = RunProgress(step=before, trained_tokens=50 * before)
    meter = Meter(PLAN, progress, torch.device("cpu"))
    for step in range(before + 1, 11):
        progress.advance(50)
        report = meter.report(progress, StepScore(1.0, 0.5), None)
        assert report.eta_seconds * report.tokens_per_second == pytest.approx(50 * (10 - step))


def test_validations_that_are_to_come_take_their_own_time(monkeypatch):
    """Checkpoints at 5 and 10: 7 seconds before the first step, and steps of 2."""
    now = iter([0.0, 0.0, 7.0, 9.0, 15.0])
    monkeypatch.setattr("hagane.training.finetune.meter.time.monotonic", lambda: next(now))
    progress = RunProgress()
    meter = Meter(PLAN, progress, torch.device("cpu"))
    assert meter.validation(lambda: 3.5) == 3.5
    progress.advance(50)
    report = meter.report(progress, StepScore(1.0, 0.5), None)
    assert (report.eta_seconds, report.tokens_per_second) == (9 * 2 + 2 * 7, 25)
    for _ in range(3):
        progress.advance(50)
    assert meter.report(progress, StepScore(1.0, 0.5), None).eta_seconds == 6 * 2 + 2 * 7
