"""The interface of weight sources: a Hugging Face directory, or a GGUF file."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Protocol

from torch import Tensor

from hagane.models.stored import StoredFormat
from hagane.weights.sources.config import is_gguf
from hagane.weights.sources.quantized.checkpoint import QuantizedCheckpoint
from hagane.weights.sources.quantized.layouts import LAYOUTS
from hagane.weights.sources.safetensors import SafetensorsCheckpoint


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
    """

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The stored shape of the tensor `name`; None if it is not stored."""

    def others(self, names: Collection[str]) -> list[str]:
        """The stored tensors that are none of `names`, as the file calls them, in order."""

    def read(self, name: str, shape: tuple[int, ...]) -> Rows:
        """The tensor `name`. Raises ModelError if it is missing or not of `shape`."""


def open_source(path: Path, stored: StoredFormat | None = None) -> WeightSource:
    """The weights in a Hugging Face directory of format `stored` or a GGUF file.

    Raises ModelError.
    """
    if not is_gguf(path):
        checkpoint = SafetensorsCheckpoint(path)
        # What has no layout is read by the one that knows the tensors' names.
        known = stored is not None and stored.method in LAYOUTS
        return QuantizedCheckpoint(checkpoint, stored) if stored and known else checkpoint
    from hagane.weights.sources.gguf.source import GGUFSource

    return GGUFSource(path)
