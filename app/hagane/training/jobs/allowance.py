"""What memory a job may take. On a GPU, the engine beside it keeps the rest."""

from __future__ import annotations

from hagane.system.errors import TrainingError
from hagane.system.machine import cuda_driver_present, memory_limit

# What a CUDA context and its libraries take beside torch's allocator: a round figure.
_CONTEXT_BYTES = 600 << 20


def allowed_memory(device: str, fraction: float) -> int:
    """Bytes for a run on `device`: that part of a GPU's memory, or what the machine has.

    torch is imported only where there is a driver of CUDA devices.
    """
    if not _on_cuda(device):
        return memory_limit()
    import torch

    return int(torch.cuda.get_device_properties(_cuda(device)).total_memory * fraction)


def confine(device: str, fraction: float) -> None:
    """Hold the tensors of this process to their part of the GPU, if `device` is one.

    Called before the device is touched: beyond it torch raises OutOfMemoryError, and nobody else's
    memory is taken. Raises TrainingError for a part that holds no more than CUDA itself.
    """
    if not _on_cuda(device):
        return
    import torch

    cuda = _cuda(device)
    total = torch.cuda.get_device_properties(cuda).total_memory
    left = fraction - _CONTEXT_BYTES / total
    if left <= 0:
        raise TrainingError(
            f"jobs may take {fraction * total / 1e9:.1f} GB of {cuda}, less than CUDA itself does: "
            "raise job_gpu_memory_fraction",
            code="out_of_memory",
        )
    torch.cuda.set_per_process_memory_fraction(left, cuda)


def _on_cuda(device: str) -> bool:
    if device == "cpu" or not cuda_driver_present():
        return False
    import torch

    return torch.cuda.is_available()


def _cuda(device: str) -> str:
    return "cuda" if device == "auto" else device
