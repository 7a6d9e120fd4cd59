"""The safetensors files of a Hugging Face directory as a source of weights."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from hagane.system.errors import ModelError

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# Buffers that old exporters wrote and every reader recomputes.
_RECOMPUTED = ("rotary_emb.inv_freq", "attn.masked_bias", "attn.bias")


class Checkpoint:
    """The safetensors files of a directory as one mapping from tensor name to tensor."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._unread: set[str] = set()
        self._files: dict[str, Path] = {}
        self._opened: dict[Path, safe_open] = {}
        for path in self._paths():
            self._opened[path] = opened = _open(path)
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                self._files[name] = path
                self._unread.add(name)

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
        try:
            names = sorted(
                set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelError(f"{index} is not a safetensors index: {error!r}") from None
        for name in names:
            if not isinstance(name, str) or Path(name).name != name:
                raise ModelError(f"{index}: shard {name!r} must be a plain file name")
            if not (self.directory / name).is_file():
                raise ModelError(f"{index} names {name}, which is not in {self.directory}")
        return [self.directory / name for name in names]

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor `name`, a view of the mapped file.

        Raises ModelError if it is missing or not of `shape`.
        """
        path = self._files.get(name)
        if path is None:
            raise ModelError(f"{self.directory}: tensor {name} is missing")
        tensor: Tensor = self._opened[path].get_tensor(name)
        if tuple(tensor.shape) != shape:
            raise ModelError(
                f"{path}: tensor {name} has shape {list(tensor.shape)}, the config asks for "
                f"{list(shape)}"
            )
        self._unread.discard(name)
        return tensor

    def finish(self, ignored: set[str]) -> None:
        """Raises ModelError if tensors were left over that no part of the model wanted."""
        unexpected = {n for n in self._unread - ignored if not n.endswith(_RECOMPUTED)}
        if unexpected:
            first = min(unexpected)
            raise ModelError(
                f"{self._files[first]}: tensor {first} is unexpected"
                + (f" ({len(unexpected)} such tensors)" if len(unexpected) > 1 else "")
            )


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is truncated or not a safetensors file: {error}") from None
