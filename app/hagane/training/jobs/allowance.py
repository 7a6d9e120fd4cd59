"""The memory that a job may use. On a GPU the rest belongs to the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from hagane.system.errors import TrainingError
from hagane.system.machine import cuda_driver_present, memory_limit

# Roughly what a CUDA context and its libraries use in addition to torch's allocator.
_CONTEXT_BYTES = 600 << 20


class Gpu(Protocol):
    """The part of a GPU's interface that jobs use.

    gpu = find_gpu("cuda:1")
    gpu.total_memory()  # bytes
    """

    name: str

    def total_memory(self) -> int:
        """Bytes of the device."""

    def limit_memory(self, fraction: float) -> None:
        """Let this process' allocator take no more than that part."""


class CudaGpu:
    """A CUDA device by torch's name. torch is imported at the first use."""

    def __init__(self, name: str) -> None:
        self.name = name

    def total_memory(self) -> int:
        """Bytes of the device."""
        import torch

        total: int = torch.cuda.get_device_properties(self.name).total_memory
        return total

    def limit_memory(self, fraction: float) -> None:
        """Beyond it torch raises OutOfMemoryError."""
        import torch

        torch.cuda.set_per_process_memory_fraction(fraction, self.name)


def cuda_available() -> bool:
    """Whether torch can use a CUDA device; it is imported only where there is a driver."""
    if not cuda_driver_present():
        return False
    import torch

    return torch.cuda.is_available()


def find_gpu(device: str, available: Callable[[], bool] = cuda_available) -> Gpu | None:
    """The GPU that a run on `device` uses; None for one on the CPU."""
    if device == "cpu" or not available():
        return None
    return CudaGpu("cuda" if device == "auto" else device)


def allowed_memory(gpu: Gpu | None, fraction: float) -> int:
    """Bytes for a run: that part of the GPU's memory, or what the machine has."""
    return memory_limit() if gpu is None else int(gpu.total_memory() * fraction)


def confine(gpu: Gpu | None, fraction: float) -> None:
    """Hold the tensors of this process to their part of the GPU, if there is one.

    Called before the device is touched: beyond it nobody else's memory is taken. Raises
    TrainingError for a part that holds no more than CUDA itself.
    """
    if gpu is None:
        return
    total = gpu.total_memory()
    left = fraction - _CONTEXT_BYTES / total
    if left <= 0:
        raise TrainingError(
            f"jobs may take {fraction * total / 1e9:.1f} GB of {gpu.name}, less than CUDA itself "
            "does: raise job_gpu_memory_fraction",
            code="out_of_memory",
        )
    gpu.limit_memory(left)
