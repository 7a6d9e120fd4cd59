"""The memory that jobs may take, on a GPU of 80 GB that records its calls."""

from __future__ import annotations

import pytest
from hagane.system.errors import TrainingError
from hagane.system.machine import memory_limit
from hagane.training.jobs.allowance import allowed_memory, confine, find_gpu

GB = 10**9


class RecordedGpu:
    name = "cuda"

    def __init__(self) -> None:
        self.limits: list[float] = []

    def total_memory(self) -> int:
        return 80 * GB

    def limit_memory(self, fraction: float) -> None:
        self.limits.append(fraction)


def test_the_cpu_has_what_the_machine_has():
    assert find_gpu("auto", available=lambda: False) is None
    assert find_gpu("cpu", available=lambda: True) is None
    assert allowed_memory(None, 0.1) == memory_limit()
    confine(None, 0.1)


@pytest.mark.parametrize(("device", "chosen"), [("auto", "cuda"), ("cuda:1", "cuda:1")])
def test_the_gpu_is_the_one_that_was_named(device, chosen):
    assert find_gpu(device, available=lambda: True).name == chosen


def test_a_job_is_held_to_its_part_of_the_gpu():
    gpu = RecordedGpu()
    assert allowed_memory(gpu, 0.1) == 8 * GB
    confine(gpu, 0.1)
    # The context is not the allocator's, but the job's.
    assert 7 * GB < gpu.limits[0] * 80 * GB < 8 * GB


def test_a_part_too_small_for_cuda_itself_is_refused():
    gpu = RecordedGpu()
    with pytest.raises(TrainingError, match="job_gpu_memory_fraction"):
        confine(gpu, 0.005)
    assert gpu.limits == []
