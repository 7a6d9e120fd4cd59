"""The interface of weight sources: a Hugging Face directory, or a GGUF file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from torch import Tensor

from hagane.weights.sources.config import is_gguf
from hagane.weights.sources.safetensors import Checkpoint


class Rows(Protocol):
    """A stored matrix or vector, converted to floats in blocks of rows; a Tensor is one, too.

    for block in rows.split(64):  # float tensors of at most 64 rows, in order
        ...
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def split(self, split_size: int) -> Iterable[Tensor]: ...


class WeightSource(Protocol):
    """Tensors by their Hugging Face names, each read once.

    source = open_source(path)
    rows = source.read("model.norm.weight", (896,))
    source.finish(ignored=set())  # raises ModelError if the file has other tensors
    """

    def read(self, name: str, shape: tuple[int, ...]) -> Rows:
        """The tensor `name`. Raises ModelError if it is missing or not of `shape`."""

    def finish(self, ignored: set[str]) -> None:
        """Raises ModelError if a tensor that is not in `ignored` was never read."""


def open_source(path: Path) -> WeightSource:
    """The weights in a Hugging Face directory or a GGUF file. Raises ModelError."""
    if not is_gguf(path):
        return Checkpoint(path)
    from hagane.weights.sources.gguf.source import GGUFSource

    return GGUFSource(path)
