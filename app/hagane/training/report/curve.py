"""The loss curve of a pretraining run: `loss.jsonl` while it runs, `loss.png` at its end."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hagane.system.files import write_text
from hagane.training.report.listener import PretrainReport
from hagane.training.report.plot import Panel, draw


class Curve:
    """The reports of the run in `directory`, including those of earlier starts up to step `first`.

    `loss.jsonl` has an object for each report: `step`, `loss`, `learning_rate`,
    `tokens_per_second`, on GPUs `utilisation`, and with a checkpoint `bits_per_byte` by corpus.
    """

    def __init__(self, directory: Path, first: int) -> None:
        self._directory = directory
        self._file = directory / "loss.jsonl"
        lines = self._file.read_text(encoding="utf-8").splitlines() if self._file.is_file() else []
        self._entries: list[dict[str, Any]] = []
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                # Half a line: the process died while it wrote.
                break
            # Steps after the last checkpoint run again, and are reported again.
            if entry["step"] <= first:
                self._entries.append(entry)

    def begin(self) -> None:
        """Drop the steps that will be reported again from the file."""
        write_text(self._file, "".join(json.dumps(entry) + "\n" for entry in self._entries))

    def add(self, report: PretrainReport) -> None:
        """Append a report."""
        entry = asdict(report)
        kept = (
            "step",
            "loss",
            "learning_rate",
            "tokens_per_second",
            "utilisation",
            "bits_per_byte",
        )
        self._entries.append({key: entry[key] for key in kept if entry[key] is not None})
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self._entries[-1]) + "\n")

    def draw(self) -> None:
        """Write `loss.png`: the training loss above the held-out bits per byte."""
        steps = [entry["step"] for entry in self._entries]
        losses = {"loss": (steps, [entry["loss"] for entry in self._entries])}
        panels = [Panel("loss, nats per token", losses)]
        scored = [entry for entry in self._entries if "bits_per_byte" in entry]
        if scored:
            curves = {}
            for label in scored[-1]["bits_per_byte"]:
                # A run may start from another run's checkpoint and bring a new corpus.
                points = [
                    (entry["step"], entry["bits_per_byte"][label])
                    for entry in scored
                    if label in entry["bits_per_byte"]
                ]
                curves[label] = [step for step, _ in points], [bits for _, bits in points]
            panels.append(Panel("held out, bits per byte", curves))
        draw(self._directory / "loss.png", panels)
