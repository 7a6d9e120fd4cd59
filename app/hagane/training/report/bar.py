"""A progress bar on the terminal, and the signals that end its run."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Self

from rich.progress import Progress, ProgressColumn

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Bar:
    """Shown while it is entered. Control-C or SIGTERM asks the run to write a checkpoint and end;
    the second one ends the process at once.
    """

    def __init__(self, name: str, *columns: str | ProgressColumn) -> None:
        self._progress = Progress(*columns)
        self._task = self._progress.add_task(name, total=None, figures="")
        self._stopping = False

    def __enter__(self) -> Self:
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        # A job in a shell's background ignores Control-C, and goes on doing so.
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
        """A line above the bar, as it is."""
        self._progress.console.print(text, markup=False, highlight=False)

    def interrupted(self) -> bool:
        """Whether the run was asked to stop."""
        return self._stopping

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True
        self._restore()
        self.say("stopping after this step; once more ends at once, without a checkpoint")

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
