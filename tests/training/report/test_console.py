"""The terminal's view of a run, and the curves that it leaves."""

from __future__ import annotations

import json

from hagane.training.report.console import Console, sketch
from hagane.training.report.listener import CheckpointReport, StepReport


def report(step: int, valid: float | None = None) -> StepReport:
    return StepReport(
        step=step, steps=4, train_loss=4.0 / step, token_accuracy=0.5, valid_loss=valid,
        valid_token_accuracy=None, learning_rate=1e-3, tokens_per_second=10.0,
        memory_bytes=1 << 30, trained_tokens=100 * step, eta_seconds=1.0,
    )  # fmt: skip


def test_a_run_leaves_its_curves(tmp_path, capsys):
    with Console(tmp_path) as console:
        for step in range(1, 5):
            console.progress(report(step, 2.0 if step == 4 else None))
        metrics = {"valid_loss": 2.0, "valid_mean_token_accuracy": 0.25}
        console.checkpoint(CheckpointReport(4, tmp_path, metrics))
    stored = json.loads((tmp_path / "loss.json").read_text())
    assert [entry["train_loss"] for entry in stored] == [4.0, 2.0, 4.0 / 3, 1.0]
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "validation loss 2.0000, 25.0% of tokens right" in shown
    assert "4.000 █" in shown


def test_a_curve_falls_from_the_left_to_the_right():
    lines = sketch([8.0, 4.0, 1.0]).splitlines()
    assert len(lines) == 8
    assert lines[0].startswith("   8.000 █  ")
    assert lines[-1].startswith("   1.000 ██▁")


def test_a_level_curve_can_be_drawn():
    assert sketch([2.0]).splitlines()[-1].startswith("   2.000 ")
