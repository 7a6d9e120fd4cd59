"""The KV cache's dtype, and the part of a GPU's memory that is left for it."""

from __future__ import annotations

import pytest
import torch
from hagane.engine.step.memory import choose_cache_dtype, remaining_memory
from hagane.models.config import CacheSpec, Quantization
from hagane.system.errors import ConfigurationError

from tests.support.engine import config

GB = 10**9


@pytest.mark.parametrize(
    ("shares_device", "fraction", "left"),
    [
        (False, 0.5, 40 - 20 - 3 - 2),  # others have 9 of the 20 that are not free
        (True, 0.5, 40 - 11 - 3 - 2),
        (False, 1.0, 60 - 3 - 2),
        (False, 0.3, 0),
    ],
)
def test_weights_others_a_step_and_adapters_have_their_room(
    tmp_path, shares_device, fraction, left
):
    settings = config(
        tmp_path, gpu_memory_fraction=fraction, adapter_memory=2 * GB, shares_device=shares_device
    )
    found = remaining_memory(settings, free=60 * GB, total=80 * GB, reserved=11 * GB, step=3 * GB)
    assert found == left * GB


@pytest.mark.parametrize(
    ("instructions", "quantize", "asked", "kept"),
    [
        ("avx512_bf16", "int4", "auto", torch.int8),
        ("avx512", "int8", "auto", torch.int8),
        ("avx512_bf16", "int8", "model", torch.bfloat16),
        ("avx512_bf16", "none", "auto", torch.bfloat16),
        ("avx512_bf16", "none", "int8", torch.int8),
        ("avx512_bf16", "fp8", "auto", torch.bfloat16),
        ("avx2", "int4", "auto", torch.bfloat16),
        ("amx", "int4", "auto", torch.bfloat16),
        (None, "int4", "auto", torch.bfloat16),
    ],
)
def test_quantized_models_have_an_int8_cache_where_that_is_faster(
    tiny_model_dir, instructions, quantize, asked, kept
):
    caches = [CacheSpec(2, 64)]
    quantization = None if quantize == "none" else Quantization(quantize, 32)
    settings = config(tiny_model_dir, kv_cache_dtype=asked)
    found = choose_cache_dtype(settings, caches, quantization, torch.bfloat16, instructions)
    assert found == kept
    # Where all heads share a key, products are what takes the time.
    latents = [CacheSpec(1, 64, shared=True)]
    found = choose_cache_dtype(settings, latents, quantization, torch.bfloat16, instructions)
    assert found == (torch.int8 if asked == "int8" else torch.bfloat16)


def test_an_int8_cache_needs_native_kernels(tiny_model_dir):
    settings = config(tiny_model_dir, kv_cache_dtype="int8")
    with pytest.raises(ConfigurationError, match="needs the native CPU kernels"):
        choose_cache_dtype(settings, [CacheSpec(2, 64)], None, torch.float32, None)
