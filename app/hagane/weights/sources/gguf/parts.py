"""Matrices of a model that GGUF files keep in other pieces: several, or parts of one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hagane.kernels.cpu import GroupedForm
from hagane.weights.sources.gguf.file import TensorInfo
from hagane.weights.sources.grouped_rows import GroupedRows, Groups


def rows_of(info: TensorInfo, first: int, last: int) -> TensorInfo | None:
    """Rows [first, last) of a tensor, which lie together; None if it has not so many."""
    if last > info.shape[0]:
        return None
    size = info.size // info.shape[0]
    shape = (last - first, *info.shape[1:])
    return replace(info, shape=shape, start=info.start + first * size, size=(last - first) * size)


@dataclass(frozen=True)
class JoinedRows(GroupedRows):
    """Two stored matrices, of the same form if any, one under the other."""

    upper: GroupedRows
    lower: GroupedRows

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.upper) + len(self.lower), *self.upper.shape[1:])

    @property
    def form(self) -> GroupedForm | None:
        return self.upper.form if self.upper.form == self.lower.form else None

    def split(self, split_size: int) -> Iterator[Tensor]:
        yield from self.upper.split(split_size)
        yield from self.lower.split(split_size)

    def groups(self, start: int, stop: int) -> Groups:
        border, width = len(self.upper), self.shape[1]
        found = []
        if start < border:
            found.append(self.upper.groups(start, min(stop, border)))
        if stop > border:
            found.append(self.lower.groups(max(start - border, 0), stop - border))
        if len(found) == 1:
            return found[0]
        codes = [groups.codes.view(-1, width) for groups in found]
        scales = [groups.scale.view(len(c), -1) for groups, c in zip(found, codes, strict=True)]
        minima = [
            groups.minimum.view(len(c), -1)
            for groups, c in zip(found, codes, strict=True)
            if groups.minimum is not None
        ]
        return Groups(torch.cat(codes), torch.cat(scales), torch.cat(minima) if minima else None)


def joined(pieces: list[Tensor | GroupedRows]) -> Tensor | GroupedRows:
    """Matrices one under the other, as the file has them where it can be."""
    first = pieces[0]
    if len(pieces) == 1:
        return first
    if len(pieces) == 2 and isinstance(first, GroupedRows) and isinstance(pieces[1], GroupedRows):
        return JoinedRows(first, pieces[1])
    return torch.cat([floats(piece) for piece in pieces])


def floats(piece: Tensor | GroupedRows) -> Tensor:
    return piece if isinstance(piece, Tensor) else torch.cat(list(piece.split(len(piece))))


def expanded(keys: Tensor, values: Tensor) -> Tensor:
    """What makes keys and values of a latent vector: [heads * (key + value features), rank].

    Files have `keys` [heads, rank, features], and `values` [heads, features, rank].
    """
    return torch.cat((keys.transpose(1, 2).to(values.dtype), values), dim=1).flatten(0, 1)
