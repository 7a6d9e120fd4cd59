"""What `quantization_config` says of a checkpoint, and what is refused."""

from __future__ import annotations

import pytest
from hagane.models.stored import stored_format
from hagane.system.errors import ModelError

from tests.support.quantized import KINDS

SUMMARIES = {
    "gptq": "GPTQ, 4 bits, groups of 32",
    "gptq-ordered": "GPTQ, 4 bits, groups of 32, inputs by activation",
    "gptq-rows": "GPTQ, 4 bits, one group per row",
    "awq": "AWQ, 4 bits, groups of 32",
    "w4a16": "compressed-tensors, W4A16 int, groups of 32",
    "w8a8": "compressed-tensors, W8A8 int, channel",
    "fp8-rows": "compressed-tensors, W8A8 float, channel",
    "fp8-whole": "fp8, one scale per matrix",
    "fp8-blocks": "fp8, blocks of 48 x 48",
}


@pytest.mark.parametrize("kind", SUMMARIES)
def test_formats_are_told_apart(kind):
    found = stored_format({"quantization_config": KINDS[kind].config}, "config.json")
    assert found is not None
    assert found.summary == SUMMARIES[kind]


def test_floats_and_own_formats_have_none():
    assert stored_format({}, "config.json") is None
    own = {"quantization_config": {"quant_method": "hagane", "format": "int8"}}
    assert stored_format(own, "config.json") is None


def test_mxfp4_is_read_of_gpt_oss_alone():
    own = {"quantization_config": {"quant_method": "mxfp4"}}
    found = stored_format(own | {"architectures": ["GptOssForCausalLM"]}, "config.json")
    assert found is not None and found.method == "mxfp4"
    with pytest.raises(ModelError, match="quant_method is 'mxfp4'; supported is that of GptOss"):
        stored_format(own | {"architectures": ["Qwen3MoeForCausalLM"]}, "config.json")


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("gptq", {"quant_method": "bitsandbytes"}, "quant_method is 'bitsandbytes'; supported is"),
        ("gptq", {"bits": 5}, "bits is 5; supported is 2, 3, 4 or 8"),
        ("gptq", {"bits": "4"}, "bits is '4'; expected"),
        ("gptq", {"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
        ("gptq", {"is_marlin_format": True}, "checkpoint_format is 'marlin'"),
        ("gptq", {"pack_dtype": "int8"}, "pack_dtype is 'int8'"),
        ("awq", {"version": "gemv"}, "version is 'gemv'; supported is gemm"),
        ("awq", {"bits": 3}, "bits is 3; supported is 4"),
        ("w8a8", {"format": "nvfp4-pack-quantized"}, "format is 'nvfp4-pack-quantized'"),
        ("w8a8", {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config.format"),
        ("w8a8", {"transform_config": {"config_groups": {"R1": {}}}}, "transform_config"),
        ("fp8-blocks", {"fmt": "e5m2"}, "fmt is 'e5m2'; supported is e4m3"),
        ("fp8-blocks", {"weight_block_size": [0, 128]}, "weight_block_size"),
    ],
)
def test_what_is_not_read_is_refused_in_one_line(kind, changes, message):
    config = {"quantization_config": {**KINDS[kind].config, **changes}}
    with pytest.raises(ModelError) as refused:
        stored_format(config, "config.json")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
