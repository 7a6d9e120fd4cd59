"""Several runs that differ in their seed alone, of which the best is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hagane.training.finetune.drive import Run, copy_result, drive
from hagane.training.finetune.spec import FineTuneSpec
from hagane.training.parallel.group import Group
from hagane.training.report.listener import (
    CheckpointReport,
    FineTuneResult,
    Listener,
    StepReport,
)


class _Shifted:
    """Reports the steps of one of several runs as those of all, one run after the other."""

    def __init__(self, listener: Listener, before: int, runs_left: int, steps: int) -> None:
        self._listener, self._before = listener, before
        self._runs_left, self._steps = runs_left, steps

    def progress(self, report: StepReport) -> None:
        # Each run to come takes as long as this one, of which a part is over.
        share = max(report.steps - report.step, 1) / report.steps
        left = report.eta_seconds * (1 + self._runs_left / share)
        step = self._before + report.step
        self._listener.progress(replace(report, step=step, steps=self._steps, eta_seconds=left))

    def checkpoint(self, report: CheckpointReport) -> None:
        self._listener.checkpoint(replace(report, step=self._before + report.step))

    def interrupted(self) -> bool:
        return self._listener.interrupted()


def sweep(
    spec: FineTuneSpec,
    directory: Path,
    listener: Listener,
    prepare: Callable[[FineTuneSpec], Run],
    group: Group,
) -> FineTuneResult:
    """Run `spec.seeds` seeds from `spec.seed` on, each in seed-N/, and copy the best adapter.

    Finished runs are not repeated. Steps are counted through all of them.
    """
    results = [
        _run(spec, number, directory, listener, prepare, group) for number in range(spec.seeds)
    ]
    best = min(results, key=lambda result: result.valid_loss)
    final = directory / best.directory.name
    if group.leads:
        copy_result(best.directory, final)
    return replace(
        best,
        directory=final,
        trained_tokens=sum(result.trained_tokens for result in results),
        steps=sum(result.steps for result in results),
    )


def _run(
    spec: FineTuneSpec,
    number: int,
    directory: Path,
    listener: Listener,
    prepare: Callable[[FineTuneSpec], Run],
    group: Group,
) -> FineTuneResult:
    """The run of one seed; its model is gone before the next one is loaded."""
    seed = spec.seed + number
    run = prepare(spec.model_copy(update={"seed": seed, "seeds": 1}))
    each, left = run.plan.steps, spec.seeds - number - 1
    shifted = _Shifted(listener, number * each, left, spec.seeds * each)
    result = drive(run, directory / f"seed-{seed}", shifted, group)
    return replace(result, step=number * each + result.step)
