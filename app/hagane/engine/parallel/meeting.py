"""Where each rank runs, and how all of them find each other."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch

from hagane.kernels.collective import Group
from hagane.kernels.devices import resolve_device
from hagane.pool.messages import EngineConfig

# In times of the engine's timeout. Ranks that load take longer than others; one that hangs in a
# step is noticed by the server, to which the first rank then says nothing.
_PATIENCE = 20


class Place(msgspec.Struct, frozen=True):
    """The cores and the device of a rank."""

    cores: list[int]
    device: str

    @classmethod
    def of(cls, config: EngineConfig, rank: int, cores: Sequence[int]) -> Place:
        """Of `rank`: its part of `cores`, or a device of its own.

        Neighbouring cores, so that ranks are on sockets of their own where there are several.
        Raises ConfigurationError for a device that is not there.
        """
        ranks = config.tensor_parallel
        count = len(cores) // ranks
        own = cores[rank * count : (rank + 1) * count] or [cores[rank % len(cores)]]
        first = resolve_device(config.device)
        if first.type == "cpu":
            return cls(list(own), "cpu")
        device = resolve_device(f"cuda:{(first.index or 0) + rank}")
        return cls(list(own), str(device))


def meet(config: EngineConfig, rank: int, place: Place, meeting: Path) -> Group:
    """Take this process to its place and wait for the other ranks there."""
    if sys.platform == "linux":
        os.sched_setaffinity(0, place.cores)
    device = torch.device(place.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    timeout = config.timeout * _PATIENCE
    group = Group(rank, config.tensor_parallel, meeting, device, timeout)
    # After this nobody reads the file any more.
    group.least(0)
    return group


def own_config(config: EngineConfig) -> EngineConfig:
    """The config of one rank, which has its share of the threads."""
    if config.threads is None:
        return config
    return msgspec.structs.replace(config, threads=max(1, config.threads // config.tensor_parallel))
