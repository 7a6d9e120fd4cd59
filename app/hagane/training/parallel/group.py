"""The ranks of a data-parallel run, as each of them sees it.

Each computes the gradients of its part of a step's sequences. Their sums over the ranks are the
same bits on all, so that all make the same update; nothing else has to be kept alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from hagane.kernels.collective import Group as Collective
from hagane.kernels.devices import resolve_device
from hagane.system.errors import ConfigurationError

# Gradients are summed so many at a time, which bounds the memory of their copies.
_AT_ONCE = 1 << 24

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """This process' rank among the `size` that share every step; alone without a `collective`.

    It is the `local_rank`-th of `local_size` on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    collective: Collective | None = None

    @property
    def leads(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def part(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's part of a step's items; none where there are fewer than ranks."""
        return items[self.rank :: self.size]

    def share(self, rows: int) -> slice:
        """This rank's part of a step's rows. Raises ConfigurationError for an uneven division."""
        if rows % self.size:
            raise ConfigurationError(
                f"batch_rows {rows} must be a multiple of the {self.size} processes"
            )
        part = rows // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def device(self, name: str) -> torch.device:
        """This rank's: each rank of a machine has a GPU of its own, from `name` on.

        Raises ConfigurationError for a device that does not exist.
        """
        return own_device(name, self.local_rank)

    def threads(self, given: int | None) -> int:
        """This rank's part of the threads `given` for its machine; torch's own without."""
        return max(1, given // self.local_size) if given else torch.get_num_threads()

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace float32 gradients by their sums over the ranks, added in the order of these.

        A rank that had no items has no gradients: its summands are 0.
        """
        if self.collective is None:
            return
        bucket: list[Tensor] = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter.grad)
            if sum(map(Tensor.numel, bucket)) >= _AT_ONCE:
                self._sum(bucket, self.collective)
                bucket = []
        if bucket:
            self._sum(bucket, self.collective)

    def _sum(self, gradients: list[Tensor], ranks: Collective) -> None:
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        padded = F.pad(flat, (0, -len(flat) % self.size))
        ranks.add_in_parts(padded)
        parts = padded[: len(flat)].split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def add(self, value: Tensor) -> Tensor:
        """`value`, now the sum of all ranks'."""
        if self.collective is not None:
            self.collective.add(value)
        return value

    def sum(self, *values: float) -> Sequence[float]:
        """The sums of all ranks' values."""
        if self.collective is None:
            return values
        wide = torch.tensor(values, dtype=torch.float64, device=self.collective.device)
        total: list[float] = self.add(wide).tolist()
        return total

    def least(self, number: int) -> int:
        """The least of all ranks' numbers."""
        return number if self.collective is None else self.collective.least(number)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any rank, so that all of them stop at the same step."""
        return bool(-self.least(-int(flag)))

    def wait(self) -> None:
        """Wait for all ranks."""
        self.least(0)

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """The block runs in the first rank, and then in the others, which read what it wrote."""
        if not self.leads:
            self.wait()
        yield
        if self.leads:
            self.wait()


ALONE = Group()


def own_device(name: str, local_rank: int) -> torch.device:
    """The device of a rank of this machine. Raises ConfigurationError where there is none."""
    first = resolve_device(name)
    if first.type == "cpu" or local_rank == 0:
        return first
    return resolve_device(f"cuda:{(first.index or 0) + local_rank}")
