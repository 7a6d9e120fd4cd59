"""What is left of a GPU for the KV cache. The device is played."""

from __future__ import annotations

import torch
from hagane.engine.step import memory

from tests.support.engine import config

GB = 10**9


def test_weights_others_a_step_and_adapters_have_their_room(monkeypatch, tmp_path):
    allocated = iter((10 * GB, 13 * GB))  # before a step, and at its peak
    played = {
        "memory_allocated": lambda device: next(allocated),
        "max_memory_allocated": lambda device: next(allocated),
        "reset_peak_memory_stats": lambda device: None,
        "empty_cache": lambda: None,
        "mem_get_info": lambda device: (60 * GB, 80 * GB),  # free, of all
    }
    for name, function in played.items():
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setattr(memory, "run_full_step", lambda *_: None)
    settings = config(tmp_path, gpu_memory_fraction=0.5, adapter_memory=2 * GB)
    left = memory.cuda_cache_memory(None, settings, 64, torch.device("cuda"), torch.bfloat16)
    assert left == (40 - 20 - 3 - 2) * GB
