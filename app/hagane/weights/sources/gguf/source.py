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
from hagane.weights.sources.gguf.parts import expanded, floats, joined, rows_of
from hagane.weights.sources.gguf.quantized_blocks import DECODERS, FLOATS, FORMS
from hagane.weights.sources.grouped_rows import GroupedRows, Groups

# torch shares out larger tensors to threads, which wait for each other longer than they decode.
_ONE_THREADS_ELEMENTS = 1 << 15
_PERMUTED = ("attn_q.weight", "attn_k.weight", "attn_q.bias", "attn_k.bias")
# Stored as a vector.
_ROW = "ffn_gate_inp_shexp.weight"
_CORRECTION = "moe_statics.e_score_correction_bias"
# A tensor, or a part of one, and the file that has it.
Place = tuple[GGUFFile, TensorInfo]


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
    """One matrix of a tensor [experts, rows, columns], or one bias of [experts, rows]."""
    if len(info.shape) < 2 or number >= info.shape[0]:
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
        if halves := self._halves(name):
            keys, values = (info.shape for _, info in halves)
            known = len(keys) == len(values) == 3 and keys[0] == values[0] and keys[1] == values[2]
            return (keys[0] * (keys[2] + values[1]), keys[1]) if known else None
        found = [self._find(piece) for piece in self._architecture.pieces_of(name)]
        infos = [info for _, info in filter(None, found)]
        if len(infos) < len(found):
            return None
        return (sum(info.shape[0] for info in infos), *infos[0].shape[1:])

    def others(self, names: Collection[str]) -> list[str]:
        tensor_name, pieces_of = self._architecture.tensor_name, self._architecture.pieces_of
        known = {tensor_name(without_number(p)[0]) for name in names for p in pieces_of(name)}
        joint = {name for name in map(self._joint_name, known) if name}
        halves = {info.name for name in names for _, info in self._halves(name) or ()}
        left = set(self._model.tensors) - known - joint - halves - CONFIGURATION_TENSORS
        # Of the layer that guesses a further token.
        last = f"blk.{self._config.layers}." if self._config.unused else "\n"
        return sorted(name for name in left if not name.startswith(last))

    def _halves(self, name: str) -> tuple[Place, Place] | None:
        """Where what makes keys and values of a latent vector lies, if they are apart."""
        stored = self._architecture.tensor_name(name)
        if not stored.endswith("attn_kv_b.weight") or stored in self._model.tensors:
            return None
        found = [
            self._model.tensors.get(stored.replace("attn_kv_b", part))
            for part in ("attn_k_b", "attn_v_b")
        ]
        return None if None in found else (found[0], found[1])  # type: ignore[return-value]

    def _joint_name(self, stored: str) -> str | None:
        """The tensor that has a query, key or value of the file's own beside the others."""
        layer, _, part = stored.rpartition("attn_")
        if part.partition(".")[0] not in ("q", "k", "v") or stored in self._model.tensors:
            return None
        return f"{layer}attn_qkv.{part.partition('.')[2]}"

    def _of_joint(self, stored: str) -> Place | None:
        """The rows of queries, keys or values in the tensor that has all of them."""
        found = self._model.tensors.get(self._joint_name(stored) or "")
        if found is None:
            return None
        config = self._config
        number = "qkv".index(stored.rpartition("attn_")[2][0])
        counts = (config.heads, config.kv_heads, config.kv_heads)
        first = sum(counts[:number]) * config.head_dim
        info = rows_of(found[1], first, first + counts[number] * config.head_dim)
        return None if info is None else (found[0], info)

    def _find(self, name: str) -> Place | None:
        """Where `name` lies: a tensor, or a part of one of all experts or of all heads."""
        whole, number = without_number(name)
        stored = self._architecture.tensor_name(whole)
        found = self._model.tensors.get(stored)
        if found is None:
            return self._of_joint(stored)
        file, info = found
        if number is not None:
            part = _part(info, number)
            return None if part is None else (file, part)
        if len(info.shape) == 1 and (info.name.endswith(_ROW) or name.endswith(_CORRECTION)):
            # A matrix of one row.
            return file, replace(info, shape=(1, *info.shape))
        return found

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor | GroupedRows:
        """The tensor `name`: a view of the file where it holds floats, else read in blocks.

        Raises ModelError if it is missing or not of `shape`.
        """
        if (halves := self._halves(name)) and self.shape(name) == shape:
            return expanded(*(self._stack(*half) for half in halves))
        pieces = self._architecture.pieces_of(name)
        if len(pieces) > 1 and self.shape(name) == shape:
            each = (shape[0] // len(pieces), *shape[1:])
            return joined([self._read(piece, each) for piece in pieces])
        return self._read(pieces[0], shape)

    def _read(self, name: str, shape: tuple[int, ...]) -> Tensor | GroupedRows:
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

    def _stack(self, file: GGUFFile, info: TensorInfo) -> Tensor:
        """The floats of a tensor [count, rows, columns]."""
        count, rows, columns = info.shape
        flat = floats(GGUFRows(file, replace(info, shape=(count * rows, columns))))
        return flat.view(info.shape)

    def _order(self, stored: str, rows: int) -> Tensor | None:
        """Where query's and key's rows lie: (head, place, half) in the file, half before place."""
        if not self._architecture.permuted or not stored.endswith(_PERMUTED):
            return None
        head = self._config.head_dim
        places = torch.arange(rows).view(-1, head // 2, 2)
        return places.transpose(1, 2).flatten()
