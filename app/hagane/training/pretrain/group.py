"""The processes of a data-parallel run, started by `torchrun`; or a single process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hagane.kernels.devices import resolve_device
from hagane.system.errors import ConfigurationError


@dataclass(frozen=True)
class Group:
    """This process' rank among the `size` processes that share every step's rows."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """This process' part of a step's rows. Raises ConfigurationError for an uneven division."""
        if rows % self.size:
            raise ConfigurationError(
                f"batch_rows {rows} must be a multiple of the {self.size} processes"
            )
        part = rows // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def average_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Replace gradients by their mean over the processes, in one all-reduce for all of them."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        for gradient, part in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))

    def average(self, value: Tensor) -> Tensor:
        """Mean of a scalar over the processes."""
        if self.size > 1:
            dist.all_reduce(value)
        return value / self.size

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process, so that all of them stop at the same step."""
        if self.size == 1:
            return flag
        votes = torch.tensor(float(flag))
        dist.all_reduce(votes)
        return bool(votes.item())

    def wait(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()


ALONE = Group()


@contextmanager
def joined(device: str) -> Iterator[Group]:
    """Join the group that `torchrun` describes in the environment: NCCL for CUDA, else gloo."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield Group(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()


def own_device(name: str) -> torch.device:
    """The device of this process; each process of a machine has its own GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return resolve_device(name)
