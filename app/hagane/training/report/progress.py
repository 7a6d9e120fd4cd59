"""Progress of a run on the terminal, for fine-tuning and for pretraining."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from hagane.system.files import write_text
from hagane.training.report.listener import CheckpointReport, PretrainReport, StepReport
from hagane.training.report.plot import Panel, draw

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_WIDTH, _HEIGHT = 64, 8
_BLOCKS = " ▁▂▃▄▅▆▇█"


class ProgressBar:
    """A progress bar, shown inside its `with` block, which also handles the signals.

    The first Control-C or SIGTERM asks the run to write a checkpoint and end; the second ends the
    process at once.
    """

    def __init__(self, name: str, *columns: str | ProgressColumn) -> None:
        self._progress = Progress(*columns)
        self._task = self._progress.add_task(name, total=None, figures="")
        self._stopping = False

    def __enter__(self) -> Self:
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        # A background job of a shell ignores Control-C, and keeps ignoring it.
        self._before = {n: handler for n, handler in before.items() if handler != signal.SIG_IGN}
        for number in self._before:
            signal.signal(number, self._stop)
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
        self._restore()

    def show(self, step: int, steps: int, figures: str = "") -> None:
        self._progress.update(self._task, total=steps, completed=step, figures=figures)

    def say(self, text: str) -> None:
        """Print a line above the bar, without markup."""
        self._progress.console.print(text, markup=False, highlight=False)

    def interrupted(self) -> bool:
        """Whether the run was asked to stop."""
        return self._stopping

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True
        self._restore()
        self.say("stopping after this step; press again to end at once, without a checkpoint")

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class FineTuneProgress(ProgressBar):
    """A progress bar with metrics; writes `loss.json` and `loss.png` to `directory` at the end."""

    def __init__(self, directory: Path) -> None:
        super().__init__(
            "fine-tuning", TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"), TimeRemainingColumn(),
        )  # fmt: skip
        self._directory = directory
        self._reports: list[StepReport] = []

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        if self._reports:
            self._draw()

    def progress(self, report: StepReport) -> None:
        self._reports.append(report)
        figures = (
            f"loss {report.train_loss:.3f}  {report.tokens_per_second:.0f} tok/s  "
            f"{report.memory_bytes / 1e9:.1f} GB"
        )
        self.show(report.step, report.steps, figures)

    def checkpoint(self, report: CheckpointReport) -> None:
        self.say(
            f"step {report.step}: validation loss {report.metrics['valid_loss']:.4f}, "
            f"{report.metrics['valid_mean_token_accuracy']:.1%} of tokens right"
        )

    def _draw(self) -> None:
        reports = self._reports
        write_text(self._directory / "loss.json", json.dumps([asdict(r) for r in reports]) + "\n")
        training = [r.step for r in reports], [r.train_loss for r in reports]
        scored = [(r.step, r.valid_loss) for r in reports if r.valid_loss is not None]
        curves = {"training": training}
        if scored:
            curves["validation"] = [step for step, _ in scored], [loss for _, loss in scored]
        draw(self._directory / "loss.png", [Panel("loss", curves)])
        self.say(sketch(training[1]))


class PretrainProgress(ProgressBar):
    """Prints every report above a progress bar."""

    def __init__(self) -> None:
        super().__init__("pretraining")

    def progress(self, report: PretrainReport) -> None:
        self.show(report.step, report.steps)
        used = "" if report.utilisation is None else f" (MFU {report.utilisation:.0%})"
        self.say(
            f"step {report.step} loss {report.loss:.4f} rate {report.learning_rate:.2e} "
            f"{report.tokens_per_second:.0f} tok/s{used}, {report.eta_seconds / 60:.0f} min left"
        )
        if report.bits_per_byte is not None:
            self.say(f"held out, bits per byte: {report.bits_per_byte}")
        for text in report.samples:
            self.say(f"> {text!r}")


def sketch(losses: list[float]) -> str:
    """Draw the curve in block characters, labelled with its highest and lowest value."""
    count = min(_WIDTH, len(losses))
    edges = [round(i * len(losses) / count) for i in range(count + 1)]
    means = [sum(losses[a:b]) / (b - a) for a, b in pairwise(edges)]
    top, bottom = max(means), min(means)
    span = (top - bottom) or 1.0
    levels = [1 + round((mean - bottom) / span * (_HEIGHT * 8 - 1)) for mean in means]
    lines = []
    for row in reversed(range(_HEIGHT)):
        label = f"{top:8.3f} " if row == _HEIGHT - 1 else f"{bottom:8.3f} " if not row else " " * 9
        lines.append(label + "".join(_BLOCKS[min(max(level - 8 * row, 0), 8)] for level in levels))
    return "\n".join(lines)
