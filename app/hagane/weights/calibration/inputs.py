"""What linear layers are multiplied by: the mean outer products of their inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hagane.models.formats.dense import Dense
from hagane.models.formats.layer import rotated

# Columns of the matrix that are added up at a time, of which only the upper half is.
_COLUMNS = 1024


class Gram:
    """The sum of x^T x over inputs x [tokens, features], and the count of tokens."""

    def __init__(self, features: int) -> None:
        self._upper = torch.zeros(features, features)
        self.tokens = 0

    def add(self, x: Tensor) -> None:
        wide = x.float()
        for start in range(0, wide.shape[1], _COLUMNS):
            rows = slice(start, start + _COLUMNS)
            self._upper[rows, start:].addmm_(wide[:, rows].t(), wide[:, start:])
        self.tokens += len(x)

    def mean(self, rotation: int) -> Tensor:
        """Float32 [features, features] of inputs that are rotated in blocks of `rotation`."""
        whole = self._upper.triu()
        whole += self._upper.triu(1).t()
        whole /= max(1, self.tokens)
        return rotated(rotated(whole, rotation).t().contiguous(), rotation)


@contextmanager
def observed(layers: Mapping[str, Dense]) -> Iterator[dict[str, Gram]]:
    """The inputs that the named layers get while the context lasts."""
    grams = {name: Gram(layer.in_features) for name, layer in layers.items()}

    def hook(gram: Gram) -> Any:
        def observe(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            gram.add(arguments[0])

        return observe

    handles = [layer.register_forward_pre_hook(hook(grams[name])) for name, layer in layers.items()]
    try:
        yield grams
    finally:
        for handle in handles:
            handle.remove()
