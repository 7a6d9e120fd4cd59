"""One rank's part of a model's weights, for tensor parallelism (`hagane.models.sharding`)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hagane.kernels.cpu import GroupedForm
from hagane.models.config import ModelConfig
from hagane.models.decoder import Transformer
from hagane.models.formats.layer import QuantizedLinear
from hagane.models.sharding import Range, Shard
from hagane.models.spec import parts_of, projections
from hagane.system.errors import ConfigurationError
from hagane.weights.sources.grouped_rows import GroupedRows, Groups
from hagane.weights.sources.source import Rows, WeightSource


@dataclass(frozen=True)
class _Cut:
    """The `ranges` of so many rows that a rank has; None: of the columns."""

    rows: int = 0
    ranges: tuple[Range, ...] | None = None


class ShardedSource:
    """The part of `source` that one rank has; tensors keep the names of the whole model `whole`.

    `read` takes the shape of the part. A bias of what is divided by columns, which is added to the
    ranks' sum, is 0 on all ranks but the first. Example:

        part = ShardedSource(source, config, Shard(rank=1, ranks=2))
        rows = part.read("model.layers.0.mlp.up_proj.weight", (2432, 896))  # of 4864
    """

    def __init__(self, source: WeightSource, whole: ModelConfig, shard: Shard) -> None:
        self._source, self._shard = source, shard
        table = _Cut(whole.vocab_size, (shard.vocabulary(whole),))
        self._cuts = {"model.embed_tokens": table, "lm_head": table}
        # By the matrices of checkpoints, and by those of the model, as Hagane stores them.
        for path, projection in projections(whole):
            if projection.shard is None:
                continue
            sizes = {path: projection.rows, **parts_of(path, projection)}
            ranges = {path: shard.rows(projection), **shard.part_rows(path, projection)}
            divided = projection.shard == "rows"
            self._cuts |= {
                f"model.{name}": _Cut(rows, ranges[name]) if divided else _Cut()
                for name, rows in sizes.items()
            }

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of the whole tensor."""
        return self._source.shape(name)

    def others(self, names: Collection[str]) -> list[str]:
        return self._source.others(names)

    def read(self, name: str, shape: tuple[int, ...]) -> Rows:
        owner, _, kind = name.rpartition(".")
        cut = self._cuts.get(owner)
        if cut is None:
            return self._source.read(name, shape)
        if cut.ranges is not None:
            whole = self._source.read(name, (cut.rows, *shape[1:]))
            return _take(whole, cut.ranges, (0, shape[1]) if len(shape) > 1 else None)
        if len(shape) == 1:
            # A bias, or the scales of the rows.
            bias_of_another = kind == "bias" and self._shard.rank > 0
            return torch.zeros(shape) if bias_of_another else self._source.read(name, shape)
        first, width = self._shard.rank * shape[1], shape[1] * self._shard.ranks
        whole = self._source.read(name, (shape[0], width))
        return _take(whole, ((0, shape[0]),), (first, first + shape[1]))


def check_stored(path: Path, whole: Transformer, part: Transformer) -> None:
    """Raises ConfigurationError unless stored codes can be divided as they are.

    Groups of inputs that share a scale, and blocks that were rotated, cannot.
    """
    for name, layer in part.named_modules():
        before = whole.get_submodule(name)
        if isinstance(layer, QuantizedLinear) and isinstance(before, QuantizedLinear):
            if layer.native == before.native:
                continue
            raise ConfigurationError(
                f"{path} is quantized so that tensor_parallel cannot divide {name} of "
                f"{before.in_features} inputs: serve the unquantized model with `quantize`"
            )


def _take(whole: Rows, ranges: tuple[Range, ...], columns: Range | None) -> Rows:
    """Rows and columns of a matrix, or rows of a vector; a view of the file where that is one."""
    if isinstance(whole, Tensor):
        pieces = [whole[start:stop] for start, stop in ranges]
        rows = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return rows if columns is None else rows[:, slice(*columns)].contiguous()
    columns = columns or (0, whole.shape[1])
    if isinstance(whole, GroupedRows):
        form = whole.form
        in_groups = form is None or not (columns[0] % form.group or columns[1] % form.group)
        if in_groups and (whole.input_order is None or columns == (0, whole.shape[1])):
            return _GroupedPart(whole, ranges, columns)
    return _Part(whole, ranges, columns)


@dataclass(frozen=True)
class _Part:
    """Rows and columns of a stored matrix, as floats."""

    whole: Rows
    ranges: tuple[Range, ...]
    columns: Range

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self), self.columns[1] - self.columns[0]

    def __len__(self) -> int:
        return sum(stop - start for start, stop in self.ranges)

    def split(self, split_size: int) -> Iterator[Tensor]:
        first = 0
        for block in self.whole.split(split_size):
            for start, stop in self.ranges:
                rows = block[max(start - first, 0) : max(stop - first, 0)]
                if len(rows):
                    yield rows[:, slice(*self.columns)]
            first += len(block)


class _GroupedPart(GroupedRows):
    """Rows, and groups of columns, of a matrix that keeps its bits."""

    def __init__(self, whole: GroupedRows, ranges: tuple[Range, ...], columns: Range) -> None:
        self._whole, self._ranges, self._columns = whole, ranges, columns

    @property
    def form(self) -> GroupedForm | None:
        return self._whole.form

    @property
    def input_order(self) -> Tensor | None:
        return self._whole.input_order

    @property
    def shape(self) -> tuple[int, ...]:
        return sum(b - a for a, b in self._ranges), self._columns[1] - self._columns[0]

    def split(self, split_size: int) -> Iterator[Tensor]:
        return _Part(self._whole, self._ranges, self._columns).split(split_size)

    def groups(self, start: int, stop: int) -> Groups:
        found = [self._read(a, b) for a, b in _within(self._ranges, start, stop)]
        minima = [groups.minimum for groups in found if groups.minimum is not None]
        return Groups(
            torch.cat([groups.codes for groups in found]),
            torch.cat([groups.scale for groups in found]),
            torch.cat(minima) if minima else None,
        )

    def _read(self, start: int, stop: int) -> Groups:
        """Rows of the whole matrix, of which each is one row of the result."""
        groups = self._whole.groups(start, stop)
        return Groups(
            self._cut(groups.codes, stop - start),
            self._cut(groups.scale, stop - start),
            None if groups.minimum is None else self._cut(groups.minimum, stop - start),
        )

    def _cut(self, tensor: Tensor, rows: int) -> Tensor:
        """The part of codes, scales or minima that belongs to the columns."""
        whole, width = tensor.view(rows, -1), self._whole.shape[1]
        first, last = (column * whole.shape[1] // width for column in self._columns)
        return whole[:, first:last]


def _within(ranges: tuple[Range, ...], start: int, stop: int) -> Iterator[Range]:
    """Rows [start, stop) of the ranges one under the other, as ranges of the whole."""
    first = 0
    for begin, end in ranges:
        low, high = max(start - first, 0), min(stop - first, end - begin)
        if low < high:
            yield begin + low, begin + high
        first += end - begin
