"""The memory of an engine, estimated before it starts."""

from __future__ import annotations

import pytest
from hagane.pool.footprint import weight_bytes
from hagane.weights.sources.gguf.file import GGUFFile
from hagane.weights.sources.gguf.quantized_blocks import FORMS
from hagane.weights.sources.gguf.types import TYPES
from safetensors.torch import load_file

from tests.models.test_undeclared import make
from tests.support.engine import config
from tests.support.gguf import write_gguf
from tests.support.mixture import make_mixture
from tests.support.quantized import KINDS, write_quantized
from tests.weights.sources.test_joint_experts import to_mxfp4


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


@pytest.mark.parametrize(("kind", "part"), [("Q8_0", 1.0), ("MXFP4", 5.5 / 4.25)])
def test_a_gguf_file_takes_what_kernels_keep_of_its_types(tiny_model_dir, tmp_path, kind, part):
    path = write_gguf(tiny_model_dir, tmp_path / "model.gguf", kind)
    stored = sum(info.size for info in GGUFFile(path).tensors.values())
    assert weight_bytes(config(path)) == pytest.approx(part * stored, rel=0.03)


def test_experts_in_four_bits_take_five_and_a_half(tmp_path):
    to_mxfp4(make_mixture(tmp_path, "gpt_oss"))
    file = tmp_path / "model.safetensors"
    codes = sum(2 * t.numel() for name, t in load_file(file).items() if name.endswith("_blocks"))
    expected = file.stat().st_size + codes * 1.25 / 8
    assert weight_bytes(config(tmp_path)) == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("kind", TYPES.values(), ids=lambda kind: kind.name)
def test_types_hold_what_their_forms_take(kind):
    form = FORMS.get(kind.name)
    scales = 0 if form is None else 16 / form.group * (2 if form.has_minimum else 1)
    assert max(kind.held, kind.bits) == max(kind.bits, (form.bits if form else 0) + scales)


def test_an_undeclared_family_is_read_as_floats_first(tmp_path):
    make("phi", tmp_path)
    plain = weight_bytes(config(tmp_path, dtype="bfloat16"))
    assert weight_bytes(config(tmp_path, dtype="bfloat16", quantize="int8")) == plain > 0
