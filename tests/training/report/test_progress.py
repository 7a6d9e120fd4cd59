"""The terminal's view of a run: signals, and the curves that it leaves."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import pytest
from hagane.training.report.listener import CheckpointReport, StepReport
from hagane.training.report.progress import FineTuneProgress, ProgressBar, sketch


@pytest.fixture(autouse=True)
def control_c() -> Iterator[None]:
    """As in a shell's foreground, however the tests were started."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_ends(number, capsys):
    with ProgressBar("training") as bar:
        assert not bar.interrupted()
        os.kill(os.getpid(), number)
        assert bar.interrupted()
        assert "stopping after this step" in capsys.readouterr().out
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_afterwards_signals_do_what_they_did_before():
    before = signal.getsignal(signal.SIGTERM)
    with ProgressBar("training"):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_that_was_ignored_stays_so():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with ProgressBar("training") as bar:
        os.kill(os.getpid(), signal.SIGINT)
        assert not bar.interrupted()


def report(step: int, valid: float | None = None) -> StepReport:
    return StepReport(
        step=step, steps=4, train_loss=4.0 / step, token_accuracy=0.5, valid_loss=valid,
        valid_token_accuracy=None, learning_rate=1e-3, tokens_per_second=10.0,
        memory_bytes=1 << 30, trained_tokens=100 * step, eta_seconds=1.0,
    )  # fmt: skip


def test_a_run_leaves_its_curves(tmp_path, capsys):
    with FineTuneProgress(tmp_path) as progress:
        for step in range(1, 5):
            progress.progress(report(step, 2.0 if step == 4 else None))
        metrics = {"valid_loss": 2.0, "valid_mean_token_accuracy": 0.25}
        progress.checkpoint(CheckpointReport(4, tmp_path, metrics))
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
