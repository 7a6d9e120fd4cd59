"""A fine-tuning run on the terminal, and its curves beside the adapter."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from hagane.system.files import write_text
from hagane.training.report.bar import Bar
from hagane.training.report.listener import CheckpointReport, StepReport
from hagane.training.report.plot import Panel, draw

_WIDTH, _HEIGHT = 64, 8
_BARS = " ▁▂▃▄▅▆▇█"


class Console(Bar):
    """A progress bar with figures; `loss.json` and `loss.png` in `directory` at the end."""

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


def sketch(losses: list[float]) -> str:
    """The curve in block characters, its highest and lowest value at the side."""
    count = min(_WIDTH, len(losses))
    edges = [round(i * len(losses) / count) for i in range(count + 1)]
    means = [sum(losses[a:b]) / (b - a) for a, b in pairwise(edges)]
    top, bottom = max(means), min(means)
    span = (top - bottom) or 1.0
    levels = [1 + round((mean - bottom) / span * (_HEIGHT * 8 - 1)) for mean in means]
    lines = []
    for row in reversed(range(_HEIGHT)):
        label = f"{top:8.3f} " if row == _HEIGHT - 1 else f"{bottom:8.3f} " if not row else " " * 9
        lines.append(label + "".join(_BARS[min(max(level - 8 * row, 0), 8)] for level in levels))
    return "\n".join(lines)
