"""The part of an adapter that belongs to one rank's part of a model.

Where a matrix is divided by rows, a rank needs the same rows of B; by columns, those of A: products
of the ranks, with what the adapter adds to them, are summed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from hagane.lora.files import Adapter, LowRank
from hagane.models.config import ModelConfig
from hagane.models.sharding import Range, Shard
from hagane.models.spec import ProjectionSpec, projections


class Division:
    """Divides adapters of the model `whole`: `shard` is what this process has of it."""

    def __init__(self, whole: ModelConfig, shard: Shard) -> None:
        self.whole, self._shard = whole, shard

    def own(self, adapter: Adapter) -> Adapter:
        """`adapter` with this rank's parts of its factors."""
        changes: dict[str, LowRank] = {}
        for path, projection in projections(self.whole):
            if projection.adaptable:
                changes |= self._own(path, projection, adapter.changes)
        return replace(adapter, changes=changes)

    def _own(
        self, path: str, projection: ProjectionSpec, changes: Mapping[str, LowRank]
    ) -> dict[str, LowRank]:
        found = {}
        columns = slice(*self._shard.columns(projection))
        for part, rows in self._shard.part_rows(path, projection).items():
            if (change := changes.get(part)) is None:
                continue
            gain = None if change.gain is None else _take(change.gain, rows)
            a = change.a[:, columns].contiguous()
            found[part] = replace(change, a=a, b=_take(change.b, rows), gain=gain)
        return found


def _take(tensor: Tensor, ranges: tuple[Range, ...]) -> Tensor:
    return torch.cat([tensor[start:stop] for start, stop in ranges])
