"""`hagane quantize`: what it prints is measured, and written down for whoever loads the result."""

from __future__ import annotations

import json
import logging
import re
import shutil

import pytest
import torch
from hagane.cli.quantize import run
from hagane.engine.step.runner import ModelRunner
from hagane.models.families import read_config_file
from hagane.system.errors import ConfigurationError
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

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


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Code to round by."""
    path = tmp_path_factory.mktemp("calibration") / "text.jsonl"
    lines = (
        json.dumps({"text": f"def add_{n}(a, b):\n    return a + b + {n}\n" * 40})
        for n in range(64)
    )
    path.write_text("\n".join(lines))
    return path


def test_inputs_beyond_the_range_of_float16_round_its_models_too(tmp_path, tiny_model_dir, text):
    model, target = tmp_path / "half", tmp_path / "small"
    shutil.copytree(tiny_model_dir, model)
    weights = {n: t.half() for n, t in load_file(model / "model.safetensors").items()}
    for name, tensor in weights.items():
        if "gate_proj" in name or "up_proj" in name:
            tensor.mul_(1000)
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    settings = json.loads((model / "config.json").read_text())
    settings = {k: v for k, v in settings.items() if k != "torch_dtype"} | {"dtype": "float16"}
    (model / "config.json").write_text(json.dumps(settings))
    assert run([str(model), str(target), "--int4", "--no-measure", "--calibrate", str(text)]) == 0
    assert load_file(target / "model.safetensors")["model.norm.weight"].dtype == torch.float16


def test_a_copy_rounded_by_a_text_serves_like_another(tmp_path, tiny_model_dir, capsys, text):
    target = tmp_path / "small"
    command = [str(tiny_model_dir), str(target), "--int4", "--no-measure"]
    assert run([*command, "--calibrate", str(text)]) == 0
    assert "layer 1 of" in capsys.readouterr().out
    plain = tmp_path / "plain"
    assert run([str(tiny_model_dir), str(plain), "--int4", "--no-measure"]) == 0
    sizes = [(path / "model.safetensors").stat().st_size for path in (target, plain)]
    assert sizes[0] <= 1.01 * sizes[1]
    ModelRunner(config(target))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "does not exist or matches no file: give text or JSON Lines"),
        (b"\xff\xfe\x00bad", "is not UTF-8: convert it, or use --calibrate auto"),
        (b"too short", r"has \d+ tokens, at least 4096 are needed: give a longer text, or auto"),
        (b'{"words": 1}\n', "a record needs 'text' or 'messages'"),
    ],
)
def test_a_text_that_cannot_be_used_is_refused_with_the_remedy(tmp_path, content, reason):
    text = tmp_path / ("text.jsonl" if content and content[:1] == b"{" else "text.txt")
    if content is not None:
        text.write_bytes(content)
    command = ["hagane-mini", str(tmp_path / "small"), "--int4", "--calibrate", str(text)]
    with pytest.raises(ConfigurationError, match=f"--calibrate: .*{reason}"):
        run(command)
    assert not (tmp_path / "small").exists()


def test_eight_bits_are_not_calibrated(tmp_path):
    with pytest.raises(
        ValidationError, match="--calibrate is for --int4: leave it out with --int8"
    ):
        run(["hagane-mini", str(tmp_path / "small"), "--int8", "--calibrate", "auto"])
