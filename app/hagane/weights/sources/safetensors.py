"""The safetensors files of a Hugging Face directory as a source of weights."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import msgspec
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hagane.system.errors import ModelError
from hagane.system.files import read_json_object
from hagane.system.shapes import shaped

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# Buffers that old exporters wrote and every reader recomputes.
_RECOMPUTED = ("rotary_emb.inv_freq", "attn.masked_bias", "attn.bias", "attention.masked_bias",
               "attention.bias")  # fmt: skip
_NUMBERED = re.compile(r"(.+)\.(\d{1,6})\.(weight|bias)")

# Bytes: a hundred times the index of the largest open models.
_LARGEST_INDEX = 256 << 20


class _Index(msgspec.Struct, frozen=True):
    """The key of the index that is read: the file of each tensor."""

    weight_map: dict[str, str]


class SafetensorsCheckpoint:
    """The safetensors files of a directory as one mapping from tensor name to tensor.

    `a.3.weight` may be number 3 of a stack that is stored as `a.weight`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files: dict[str, Path] = {}
        self._opened: dict[Path, safe_open] = {}
        for path in self._paths():
            self._opened[path] = opened = _open(path)
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                self._files[name] = path

    def _paths(self) -> list[Path]:
        index, single = self.directory / INDEX_FILE, self.directory / WEIGHTS_FILE
        if single.is_file():
            return [single]
        if not index.is_file():
            pickled = sorted(p.name for p in self.directory.glob("*.bin"))
            hint = "".join(
                f" ({name} is a pickle, which is never loaded: convert it)" for name in pickled[:1]
            )
            raise ModelError(f"{single} does not exist{hint}")
        stored = shaped(read_json_object(index, _LARGEST_INDEX), _Index, str(index))
        names = sorted(set(stored.weight_map.values()))
        for name in names:
            if Path(name).name != name:
                raise ModelError(f"{index}: shard {name!r} must be a plain file name")
            if not (self.directory / name).is_file():
                raise ModelError(f"{index} names {name}, which is not in {self.directory}")
        return [self.directory / name for name in names]

    def shape(self, name: str) -> tuple[int, ...] | None:
        path = self._files.get(name)
        if path is not None:
            return tuple(self._opened[path].get_slice(name).get_shape())
        stack, number = _stack_of(name)
        shape = self.shape(stack) if stack in self._files else None
        return shape[1:] if shape and number < shape[0] else None

    def dtype(self, name: str) -> str | None:
        """The stored dtype as the file calls it, such as "BF16"; None if it is not stored."""
        path = self._files.get(name)
        return None if path is None else str(self._opened[path].get_slice(name).get_dtype())

    def others(self, names: Collection[str]) -> list[str]:
        known = {*names, *(_stack_of(name)[0] for name in names)}
        return sorted(n for n in self._files if n not in known and not n.endswith(_RECOMPUTED))

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor `name`, a view of the mapped file.

        Raises ModelError if it is missing or not of `shape`.
        """
        path = self._files.get(name)
        if path is None:
            stack, number = _stack_of(name)
            stacked = self.shape(stack) if stack in self._files else None
            if stacked and stacked[1:] == shape and number < stacked[0]:
                return self.read(stack, stacked)[number]
            raise ModelError(f"{self.directory}: tensor {name} is missing")
        tensor: Tensor = self._opened[path].get_tensor(name)
        if tuple(tensor.shape) != shape:
            raise ModelError(
                f"{path}: tensor {name} has shape {list(tensor.shape)}, the config asks for "
                f"{list(shape)}"
            )
        return tensor


def _stack_of(name: str) -> tuple[str, int]:
    """The stack that a tensor would be in, and its number there; "" and 0 if its name has none."""
    match = _NUMBERED.fullmatch(name)
    return (f"{match[1]}.{match[3]}", int(match[2])) if match else ("", 0)


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is truncated or not a safetensors file: {error}") from None
