"""From the name of a device to one that is there."""

from __future__ import annotations

import torch

from hagane.system.errors import ConfigurationError


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises ConfigurationError for a device not present."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigurationError(f"device {name!r} is not one of auto, cpu, cuda, cuda:N")
    if device.type == "cpu":
        return device
    index, count = device.index or 0, torch.cuda.device_count()
    if index < count:
        return torch.device("cuda", index)
    if not torch.backends.cuda.is_built():
        raise ConfigurationError(
            f"device {name!r} is not there: torch {torch.__version__} is a build without CUDA; "
            "install one with it (pytorch.org has the command for your driver), or leave device "
            "at auto"
        )
    raise ConfigurationError(
        f"device {name!r} is not there: torch sees {count} CUDA devices; `hagane doctor` says more"
    )
