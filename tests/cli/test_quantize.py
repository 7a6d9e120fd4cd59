"""`hagane quantize`: what it prints is measured, and written down for whoever loads the result."""

from __future__ import annotations

import logging
import re

import pytest
from hagane.cli.quantize import run
from hagane.engine.step.runner import ModelRunner
from hagane.models.families import read_config_file

from tests.support.engine import config


def test_a_copy_states_the_loss_that_was_measured(tmp_path, capsys, caplog):
    target = tmp_path / "small"
    assert run(["hagane-mini", str(target), "--int4"]) == 0
    shown = re.search(r"([+-]\d+\.\d+)% of the loss", capsys.readouterr().out)
    assert shown is not None
    stated = read_config_file(target).quantization
    assert stated is not None
    assert stated.measured_loss == pytest.approx(float(shown[1]) / 100, abs=1e-4)
    assert -0.01 < stated.measured_loss < 0.05
    with caplog.at_level(logging.INFO, logger="hagane"):
        ModelRunner(config(target))
    assert f"int4 was measured to add {100 * stated.measured_loss:.2f}%" in caplog.text


def test_int4_that_nobody_measured_is_warned_of(tmp_path, caplog):
    assert run(["hagane-mini", str(tmp_path / "small"), "--int4", "--no-measure"]) == 0
    with caplog.at_level(logging.WARNING, logger="hagane"):
        ModelRunner(config(tmp_path / "small"))
    assert "int4 was not measured on this model" in caplog.text
