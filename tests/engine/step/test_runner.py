"""A runner's loading, and its refusals before it loads anything."""

from __future__ import annotations

import gc
import os
import socket
import sys
from pathlib import Path

import pytest
from hagane.engine.loop import Engine
from hagane.engine.step.runner import ModelRunner
from hagane.kernels import cpu
from hagane.models.config import Quantization
from hagane.pool.channel import EngineChannel
from hagane.system.errors import ConfigurationError
from hagane.weights.quantize import quantize_directory

from tests.support.engine import RunningEngine, config


@pytest.mark.skipif(not cpu.available(), reason="kernels not built")
@pytest.mark.parametrize("block_size", [8, 24])
def test_native_kernels_refuse_blocks_they_would_read_past(tiny_model_dir, block_size):
    with pytest.raises(ConfigurationError, match=f"block_size is {block_size}.*multiple of 16"):
        ModelRunner(config(tiny_model_dir, block_size=block_size))


def test_a_stored_format_is_served_as_if_quantized_at_the_start(tiny_model_dir, tmp_path):
    quantize_directory(tiny_model_dir, tmp_path / "fp8", Quantization("fp8"))
    answers = []
    for directory, quantize in ((tiny_model_dir, "fp8"), (tmp_path / "fp8", "none")):
        with RunningEngine(config(directory, quantize=quantize)) as engine:
            engine.ask("a", tuple(range(40, 60)), tokens=8)
            answers += engine.wait("a")
    assert answers[0].tokens == answers[1].tokens
    assert answers[0].logprobs == answers[1].logprobs
    with pytest.raises(ConfigurationError, match="stored in fp8"):
        ModelRunner(config(tmp_path / "fp8", quantize="int8"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_an_idle_engine_maps_all_of_the_kv_cache(tiny_model_dir):
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    size = 64 << 20
    ours, theirs = socket.socketpair()
    with ours, theirs:
        gc.collect()  # engines of other tests would be freed meanwhile
        before = resident()
        engine = Engine(config(tiny_model_dir, kv_cache_memory=size), EngineChannel(theirs))
        while engine.runner.prefault():
            pass
        assert resident() - before > size * 0.9
        del engine
