"""The weights of a GGUF file, under their Hugging Face names."""

from __future__ import annotations

import math
import mmap
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from hagane.kernels.cpu import GroupedForm
from hagane.models.families import read_config
from hagane.system.errors import ModelError
from hagane.weights.sources.gguf.architectures import (
    CONFIGURATION_TENSORS,
    architecture,
    huggingface_config,
    without_number,
)
from hagane.weights.sources.gguf.file import GGUFFile, GGUFModel, TensorInfo
from hagane.weights.sources.gguf.quantized_blocks import DECODERS, FLOATS, FORMS
from hagane.weights.sources.grouped_rows import GroupedRows, Groups

# torch shares out larger tensors to threads, which wait for each other longer than they decode.
_ONE_THREADS_ELEMENTS = 1 << 15
_PERMUTED = ("attn_q.weight", "attn_k.weight", "attn_q.bias", "attn_k.bias")
# Stored as a vector.
_ROW = "ffn_gate_inp_shexp.weight"


@dataclass(frozen=True)
class GGUFRows(GroupedRows):
    """One tensor of a file. `order` is the stored row of each row; None: in order.

    `offset` is taken from every value.
    """

    file: GGUFFile
    info: TensorInfo
    order: Tensor | None = None
    offset: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.info.shape

    @property
    def form(self) -> GroupedForm | None:
        return FORMS.get(self.info.type.name) if self.shape[1] % 32 == 0 else None

    def split(self, split_size: int) -> Iterator[Tensor]:
        """Float tensors of at most `split_size` rows.

        The file's pages are given back after the last one.
        """
        most = max(1, _ONE_THREADS_ELEMENTS // math.prod(self.shape[1:]))
        step = min(split_size, most)
        for start in range(0, len(self), step):
            yield self.rows(start, min(start + step, len(self)))
        self._release()

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop), float32 or what the file holds if that is a float type."""
        dtype = FLOATS.get(self.info.type.name)
        if dtype is None:
            return self.groups(start, stop).dequantize().view(stop - start, *self.shape[1:])
        values = self.raw(start, stop)
        # Files may be aligned to less than a float.
        if values.data_ptr() % dtype.itemsize:
            values = values.clone()
        floats = values.view(dtype).view(stop - start, *self.shape[1:])
        return floats - self.offset if self.offset else floats

    def groups(self, start: int, stop: int) -> Groups:
        """Rows [start, stop) of a block format: its codes [blocks, weights of a block]."""
        blocks = self.raw(start, stop).view(-1, self.info.type.size)
        return DECODERS[self.info.type.name](blocks)

    def raw(self, start: int, stop: int) -> Tensor:
        """The stored bytes of rows [start, stop), uint8 [rows, bytes]; a view where in order."""
        width = self.info.size // len(self)
        stored = torch.frombuffer(
            self.file.data, dtype=torch.uint8, count=self.info.size, offset=self.info.start
        ).view(-1, width)
        return stored[start:stop] if self.order is None else stored[self.order[start:stop]]

    def _release(self) -> None:
        first = -(-self.info.start // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (self.info.start + self.info.size) // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last and hasattr(mmap, "MADV_DONTNEED"):
            self.file.data.madvise(mmap.MADV_DONTNEED, first, last - first)


def _part(info: TensorInfo, number: int) -> TensorInfo | None:
    """One matrix of a tensor [experts, rows, columns]."""
    if len(info.shape) != 3 or number >= info.shape[0]:
        return None
    size = info.size // info.shape[0]
    return replace(info, shape=info.shape[1:], start=info.start + number * size, size=size)


class GGUFSource:
    """A GGUF file as a source of weights. Raises ModelError on opening what cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._model = GGUFModel(path)
        self._architecture = architecture(self._model)
        self._config = read_config(huggingface_config(self._model), source=str(path))

    def shape(self, name: str) -> tuple[int, ...] | None:
        found = self._find(name)
        return None if found is None else found[1].shape

    def others(self, names: Collection[str]) -> list[str]:
        tensor_name = self._architecture.tensor_name
        known = {tensor_name(without_number(name)[0]) for name in names} | CONFIGURATION_TENSORS
        return sorted(set(self._model.tensors) - known)

    def _find(self, name: str) -> tuple[GGUFFile, TensorInfo] | None:
        """Where `name` lies: a tensor, or an expert's part of one of all experts."""
        whole, number = without_number(name)
        found = self._model.tensors.get(self._architecture.tensor_name(whole))
        if found is None:
            return None
        file, info = found
        if number is not None:
            part = _part(info, number)
            return None if part is None else (file, part)
        if info.name.endswith(_ROW) and len(info.shape) == 1:
            # A matrix of one row.
            return file, replace(info, shape=(1, *info.shape))
        return found

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor | GGUFRows:
        """The tensor `name`: a view of the file where it holds floats, else read in blocks.

        Raises ModelError if it is missing or not of `shape`.
        """
        stored = self._architecture.tensor_name(without_number(name)[0])
        found = self._find(name)
        if found is None:
            raise ModelError(f"{self.path}: tensor {stored} ({name}) is missing")
        file, info = found
        if info.shape != shape:
            raise file.error(
                f"has the tensor {stored!r} of shape {list(info.shape)}, the metadata asks for "
                f"{list(shape)}"
            )
        if len(shape) == 1 and info.type.name not in FLOATS:
            raise file.error(f"has the vector {stored!r} in blocks ({info.type.name})")
        offset = self._architecture.norm_offset if stored.endswith("norm.weight") else 0.0
        rows = GGUFRows(file, info, self._order(stored, shape[0]), offset)
        return rows.rows(0, len(rows)) if info.type.name in FLOATS else rows

    def _order(self, stored: str, rows: int) -> Tensor | None:
        """Where query's and key's rows lie: (head, place, half) in the file, half before place."""
        if not self._architecture.permuted or not stored.endswith(_PERMUTED):
            return None
        head = self._config.head_dim
        places = torch.arange(rows).view(-1, head // 2, 2)
        return places.transpose(1, 2).flatten()
