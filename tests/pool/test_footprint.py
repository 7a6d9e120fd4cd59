"""The memory of an engine, estimated before it starts."""

from __future__ import annotations

import pytest
from hagane.pool.footprint import weight_bytes

from tests.support.engine import config
from tests.support.quantized import KINDS, write_quantized


@pytest.mark.parametrize(("form", "part"), [("none", 1.0), ("int8", 0.25), ("int4", 0.15)])
def test_a_model_is_weighed_in_the_form_in_which_it_is_served(tiny_model_dir, form, part):
    weights = (tiny_model_dir / "model.safetensors").stat().st_size
    settings = config(tiny_model_dir, quantize=form)
    assert weight_bytes(settings) == pytest.approx(part * weights, rel=0.1)


def test_a_quantized_checkpoint_takes_what_it_has_on_the_disk(tiny_model_dir, tmp_path):
    write_quantized(tiny_model_dir, tmp_path / "model", KINDS["gptq"])
    stored = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert weight_bytes(config(tmp_path / "model")) == stored
    coarser = weight_bytes(config(tmp_path / "model", quantize="int8"))
    assert coarser == weight_bytes(config(tiny_model_dir, quantize="int8"))
