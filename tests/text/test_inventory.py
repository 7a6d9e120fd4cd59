"""Descriptions of models."""

from __future__ import annotations

from hagane.text.inventory import describe

from tests.support.quantized import KINDS, write_quantized


def test_a_quantized_checkpoint_is_described_by_its_format(tiny_model_dir, tmp_path):
    write_quantized(tiny_model_dir, tmp_path / "model", KINDS["gptq-ordered"])
    facts = describe(tmp_path / "model")
    assert facts["quantization"] == "GPTQ, 4 bits, groups of 32, inputs by activation"
    # Not the packed codes.
    assert facts["parameters"] == describe(tiny_model_dir)["parameters"]
