"""A pretraining run on the terminal."""

from __future__ import annotations

from hagane.training.report.bar import Bar
from hagane.training.report.listener import PretrainReport


class Terminal(Bar):
    """The reports above a progress bar."""

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
