"""What memory jobs may take. The device is played: torch's calls are recorded."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hagane.system.errors import TrainingError
from hagane.system.machine import memory_limit
from hagane.training.jobs import allowance

GB = 10**9


@pytest.fixture
def gpu(monkeypatch):
    """A device of 80 GB; returns the fractions that were set."""
    fractions = []
    monkeypatch.setattr(allowance, "cuda_driver_present", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    properties = SimpleNamespace(total_memory=80 * GB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda *given: fractions.append(given)
    )
    return fractions


def test_the_cpu_has_what_the_machine_has(monkeypatch):
    monkeypatch.setattr(allowance, "cuda_driver_present", lambda: False)
    assert allowance.allowed_memory("auto", 0.1) == allowance.allowed_memory("cpu", 0.1)
    assert allowance.allowed_memory("cpu", 0.1) == memory_limit()
    allowance.confine("auto", 0.1)


@pytest.mark.parametrize(("device", "chosen"), [("auto", "cuda"), ("cuda:1", "cuda:1")])
def test_a_job_is_held_to_its_part_of_the_gpu(gpu, device, chosen):
    assert allowance.allowed_memory(device, 0.1) == 8 * GB
    allowance.confine(device, 0.1)
    ((fraction, where),) = gpu
    assert where == chosen
    # The context is not the allocator's, but the job's.
    assert 7 * GB < fraction * 80 * GB < 8 * GB


def test_the_cpu_s_jobs_leave_a_gpu_alone(gpu):
    assert allowance.allowed_memory("cpu", 0.1) == memory_limit()
    allowance.confine("cpu", 0.1)
    assert gpu == []


def test_a_part_too_small_for_cuda_itself_is_refused(gpu):
    with pytest.raises(TrainingError, match="job_gpu_memory_fraction"):
        allowance.confine("cuda", 0.005)
