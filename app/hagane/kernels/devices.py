"""Resolve the name of a device to one that exists."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hagane.system.errors import ConfigurationError


@dataclass(frozen=True)
class Cuda:
    """Of torch: the number of CUDA devices, and whether it was built for CUDA."""

    devices: int
    built: bool

    @classmethod
    def detect(cls) -> Cuda:
        return cls(torch.cuda.device_count(), torch.backends.cuda.is_built())


def resolve_device(name: str, cuda: Cuda | None = None) -> torch.device:
    """Resolve `auto`, `cpu`, `cuda` or `cuda:N`; `auto` is CUDA if there is a device.

    `cuda` defaults to what torch finds. Raises ConfigurationError for a device that does not exist.
    """
    cuda = cuda or Cuda.detect()
    if name == "auto":
        name = "cuda" if cuda.devices else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigurationError(f"device {name!r} is not one of auto, cpu, cuda, cuda:N")
    if device.type == "cpu":
        return device
    index = device.index or 0
    if index < cuda.devices:
        return torch.device("cuda", index)
    if not cuda.built:
        raise ConfigurationError(
            f"device {name!r} does not exist: torch {torch.__version__} is a build without CUDA; "
            "install one with it (pytorch.org has the command for your driver), or leave device "
            "at auto"
        )
    raise ConfigurationError(
        f"device {name!r} does not exist: torch finds {cuda.devices} CUDA devices; "
        "run `hagane doctor` for details"
    )
