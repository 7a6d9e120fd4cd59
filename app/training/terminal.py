"""A pretraining run on the terminal."""

from __future__ import annotations

from types import TracebackType

from rich.progress import Progress

from app.training.listener import PretrainReport


class Terminal:
    """A progress bar with the reports above it; while it is entered."""

    def __init__(self) -> None:
        self._progress = Progress()
        self._bar = self._progress.add_task("pretraining", total=None)

    def __enter__(self) -> Terminal:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def progress(self, report: PretrainReport) -> None:
        """Print a report."""
        self._progress.update(self._bar, total=report.steps, completed=report.step)
        say = self._progress.console.print
        say(
            f"step {report.step} loss {report.loss:.4f} rate {report.learning_rate:.2e} "
            f"{report.tokens_per_second:.0f} tok/s, {report.eta_seconds / 60:.0f} min left"
        )
        if report.bits_per_byte is not None:
            say(f"held out, bits per byte: {report.bits_per_byte}")
        for text in report.samples:
            say(f"> {text!r}", markup=False)

    def interrupted(self) -> bool:
        """Control-C ends the process at once: the last checkpoint is what it goes on from."""
        return False
