"""Ranks: processes that compute one model together, over torch.distributed.

On CPUs they talk by gloo, on GPUs by NCCL. Those of one machine listen on the loopback interface
alone and find each other by a file; those of several machines, by the variables of `torchrun`.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor


class Group:
    """All ranks, of which this process is `rank`; made when all of them have joined.

    `meeting` is a file that is not there yet, in a directory of this user alone; None: torchrun's
    variables say where. Every method is called by all ranks, in the same order. Raises RuntimeError
    when a rank is gone. Example:

        group = Group(0, 2, directory / "meeting", torch.device("cpu"), timeout=600.0)
        group.add(product)  # now the sum of both ranks' products
    """

    def __init__(
        self,
        rank: int,
        ranks: int,
        meeting: Path | None,
        device: torch.device,
        timeout: float,
    ) -> None:
        self.rank, self.ranks, self.device = rank, ranks, device
        if meeting is not None:
            loopback = "lo0" if sys.platform == "darwin" else "lo"
            os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = loopback
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method="env://" if meeting is None else f"file://{meeting}",
            rank=rank,
            world_size=ranks,
            timeout=timedelta(seconds=timeout),
        )

    def add(self, product: Tensor) -> None:
        """Replace each rank's `product` by the sum of all.

        On a CPU a sum has the same bits in any batch: its summands are added in float32 (float64 if
        they are) and in their order, or are two.
        """
        if self.device.type != "cpu":
            dist.all_reduce(product)
            return
        whole = product.dtype in (torch.float32, torch.float64)
        wide = product if whole else product.float()
        if self.ranks == 2:
            dist.all_reduce(wide)
            total = wide
        else:
            parts = [torch.empty_like(wide) for _ in range(self.ranks)]
            dist.all_gather(parts, wide)
            total = parts[0]
            for part in parts[1:]:
                total += part
        if total is not product:
            product.copy_(total)

    def add_in_parts(self, vector: Tensor) -> None:
        """As `add`, of a long vector [n], where n is a multiple of the ranks.

        Each rank adds a part of the summands, on GPUs as well in the order of the ranks, so that
        nothing travels more than twice and a sum has the same bits each time.
        """
        received = torch.empty_like(vector)
        dist.all_to_all_single(received, vector)
        first, *others = received.view(self.ranks, -1)
        for other in others:
            first += other
        dist.all_gather(list(vector.view(self.ranks, -1)), first)

    def collect(self, part: Tensor, whole: Tensor) -> None:
        """Put the ranks' parts [n, features] next to each other into the first rank's `whole`."""
        if self.rank:
            dist.gather(part, dst=0)
            return
        parts = [torch.empty_like(part) for _ in range(self.ranks)]
        dist.gather(part, parts, dst=0)
        torch.cat(parts, dim=1, out=whole)

    def least(self, number: int) -> int:
        """The least of all ranks' numbers."""
        found = torch.tensor([number], dtype=torch.int64, device=self.device)
        dist.all_reduce(found, op=dist.ReduceOp.MIN)
        return int(found.item())

    def leave(self) -> None:
        """End this rank's part in it."""
        dist.destroy_process_group()
