"""A bounded, lazy reader of GGUF files (versions 2 and 3), without torch.

A file comes from a stranger: every count and length is compared with the bytes that are left
before anything is read or allocated for it, and nothing in a file names another file.

    header    magic "GGUF", version, number of tensors, number of metadata pairs
    metadata  key, type, value; an array is its elements' type, its length and its elements
    tensors   name, dimensions (the fastest first), type, offset from the start of the data
    data      aligned to `general.alignment`
"""

from __future__ import annotations

import mmap
import re
import stat
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from hagane.system.errors import ModelError
from hagane.weights.sources.gguf.types import TYPES, UNREAD_TYPES, GGUFType

MAGIC = b"GGUF"
SUFFIX = ".gguf"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
# A thousand times what any model has: more is a lie that would only cost time.
_MOST_PAIRS = 1 << 16
_MOST_TENSORS = 1 << 20
_MOST_DIMENSIONS = 4
_LONGEST_NAME = 1 << 12
_MOST_SHARDS = 1 << 10
_MOST_STRINGS = 1 << 22
_LONGEST_TEXT = 1 << 24
_LONGEST_MESSAGE = 1000
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")

_STRING, _ARRAY, _BOOL = 8, 9, 7
# Names of numpy, which end in the size in bytes.
_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    _BOOL: "|b1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_SIZES = {code: int(name[2]) for code, name in _SCALARS.items()}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies. `shape` is in rows first order, as torch has it; `start` in bytes."""

    name: str
    shape: tuple[int, ...]
    type: GGUFType
    start: int
    size: int


class GGUFFile:
    """One mapped file: its metadata, read on demand, and its tensors' places.

    Raises ModelError, naming the file and what is wrong in it, on opening it or reading from it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = _map(path)
        self._cursor = 0
        if self.data[:4] != MAGIC:
            raise self.error("does not begin with GGUF: it is no GGUF file")
        self._cursor = 4
        version = self._u32("the version")
        if version not in _VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
            hint = " (it is big-endian: convert it)" if swapped else ""
            raise self.error(f"has version {version}; versions 2 and 3 are read{hint}")
        tensors, pairs = self._u64("the number of tensors"), self._u64("the number of pairs")
        # The least that a pair or a tensor takes: an empty name, a type, a value.
        self._bound("the number of metadata pairs", pairs, 13, _MOST_PAIRS)
        self._values: dict[str, tuple[int, int]] = {}
        for _ in range(pairs):
            self._index_pair()
        self._bound("the number of tensors", tensors, 24, _MOST_TENSORS)
        self.tensors: dict[str, TensorInfo] = {}
        self._read_tensors(tensors)

    def error(self, problem: str) -> ModelError:
        """A ModelError that names this file, in one line whatever is quoted from it."""
        line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in problem[:_LONGEST_MESSAGE])
        return ModelError(f"{self.path} {line}")

    def __contains__(self, key: str) -> bool:
        return key in self._values

    @property
    def keys(self) -> tuple[str, ...]:
        """All metadata keys, in the file's order."""
        return tuple(self._values)

    def length(self, key: str) -> int:
        """The number of elements of the array `key`; 0 if it is missing or no array."""
        code, start = self._values.get(key, (0, 0))
        return int(_U64.unpack_from(self.data, start + 4)[0]) if code == _ARRAY else 0

    def get(self, key: str) -> Any:
        """The value of `key`: a number, a bool, a string, an array or a list of strings, or None.

        Arrays of numbers are views of the file.
        """
        if key not in self._values:
            return None
        code, start = self._values[key]
        if code == _STRING:
            return self._text(start, key)[0]
        # A server that has no GGUF file needs no numpy.
        import numpy as np

        if code != _ARRAY:
            return np.frombuffer(self.data, _SCALARS[code], 1, start)[0].item()
        (element,), (count,) = (
            _U32.unpack_from(self.data, start),
            _U64.unpack_from(self.data, start + 4),
        )
        start += 12
        if element != _STRING:
            return np.frombuffer(self.data, _SCALARS[element], count, start)
        return self._strings(start, count, key)

    def _strings(self, start: int, count: int, key: str) -> list[str]:
        if count > _MOST_STRINGS:
            raise self.error(f"has {count} strings in {key}; at most {_MOST_STRINGS} are read")
        data, unpack, end = self.data, _U64.unpack_from, start
        strings = []
        try:
            for _ in range(count):
                begin = end + 8
                end = begin + unpack(data, end)[0]
                strings.append(str(data[begin:end], "utf-8"))
        except UnicodeDecodeError:
            raise self.error(f"has an element of {key} that is no UTF-8") from None
        return strings

    def _text(self, start: int, what: str) -> tuple[str, int]:
        """The string at `start`, whose length was checked, and where it ends."""
        begin = start + 8
        size = _U64.unpack_from(self.data, start)[0]
        if size > _LONGEST_TEXT:
            raise self.error(
                f"has {size} bytes of text in {what}; at most {_LONGEST_TEXT} are read"
            )
        end = begin + size
        try:
            return str(self.data[begin:end], "utf-8"), end
        except UnicodeDecodeError:
            raise self.error(f"has no UTF-8 text in {what}") from None

    def _take(self, size: int, what: str) -> int:
        """Where the next `size` bytes begin; the cursor moves past them."""
        start = self._cursor
        if size > len(self.data) - start:
            raise self.error(
                f"is truncated or damaged: {what} takes {size} bytes at byte {start} of "
                f"{len(self.data)}"
            )
        self._cursor = start + size
        return start

    def _u32(self, what: str) -> int:
        return int(_U32.unpack_from(self.data, self._take(4, what))[0])

    def _u64(self, what: str) -> int:
        return int(_U64.unpack_from(self.data, self._take(8, what))[0])

    def _bound(self, what: str, count: int, size: int, most: int) -> None:
        if count > most or count * size > len(self.data) - self._cursor:
            raise self.error(f"is truncated or damaged: {what} is {count}")

    def _name(self, what: str) -> str:
        start = self._cursor
        size = self._u64(f"the length of {what}")
        if size > _LONGEST_NAME:
            raise self.error(f"is damaged: {what} at byte {start} has {size} bytes")
        self._take(size, what)
        return self._text(start, f"{what} at byte {start}")[0]

    def _index_pair(self) -> None:
        key = self._name("a metadata key")
        if key in self._values:
            raise self.error(f"has the metadata key {key!r} twice")
        code = self._u32(f"the type of {key}")
        self._values[key] = code, self._cursor
        if code == _STRING:
            self._skip_string(key)
        elif code in _SIZES:
            self._take(_SIZES[code], key)
        elif code == _ARRAY:
            self._skip_array(key)
        else:
            raise self.error(f"has the metadata key {key!r} with the unknown type {code}")

    def _skip_string(self, key: str) -> None:
        self._take(self._u64(key), key)

    def _skip_array(self, key: str) -> None:
        element, count = self._u32(key), self._u64(key)
        if element == _ARRAY:
            raise self.error(f"has arrays of arrays in the metadata key {key!r}: none are read")
        if element in _SIZES:
            self._take(_SIZES[element] * count, key)
            return
        if element != _STRING:
            raise self.error(f"has the array {key!r} with elements of the unknown type {element}")
        self._bound(f"the length of {key}", count, 8, len(self.data))
        data, unpack, cursor, limit = self.data, _U64.unpack_from, self._cursor, len(self.data) - 8
        for _ in range(count):
            if cursor > limit:
                break
            cursor += 8 + unpack(data, cursor)[0]
        else:
            self._cursor = cursor
            if cursor <= len(data):
                return
        raise self.error(f"is truncated or damaged: the strings of {key} pass its end")

    def _alignment(self) -> int:
        value = self.get("general.alignment")
        value = _DEFAULT_ALIGNMENT if value is None else value
        # A power of two: x & (x - 1) clears the lowest bit that is set.
        if not isinstance(value, int) or not 0 < value <= 1 << 20 or value & (value - 1):
            raise self.error(f"has the general.alignment {value!r}, which is no power of two")
        return value

    def _read_tensors(self, count: int) -> None:
        places = [self._tensor_place() for _ in range(count)]
        alignment = self._alignment()
        data_start = -(-self._cursor // alignment) * alignment
        for name, shape, kind, offset in places:
            if name in self.tensors:
                raise self.error(f"has the tensor {name!r} twice")
            if offset % alignment:
                raise self.error(f"has the tensor {name!r} at {offset}, which is not aligned")
            size = prod(shape) // kind.block * kind.size
            if data_start + offset + size > len(self.data):
                raise self.error(
                    f"is truncated or damaged: the tensor {name!r} ends at byte "
                    f"{data_start + offset + size} of {len(self.data)}"
                )
            self.tensors[name] = TensorInfo(name, shape, kind, data_start + offset, size)

    def _tensor_place(self) -> tuple[str, tuple[int, ...], GGUFType, int]:
        name = self._name("a tensor's name")
        dimensions = self._u32(f"the shape of {name}")
        if not 0 < dimensions <= _MOST_DIMENSIONS:
            raise self.error(f"has the tensor {name!r} with {dimensions} dimensions")
        shape = tuple(self._u64(f"the shape of {name}") for _ in range(dimensions))
        code, offset = self._u32(f"the type of {name}"), self._u64(f"the offset of {name}")
        kind = TYPES.get(code)
        if kind is None:
            known = UNREAD_TYPES.get(code, f"number {code}")
            readable = ", ".join(kind.name for kind in TYPES.values())
            raise self.error(f"has the tensor {name!r} of type {known}; read are {readable}")
        if not all(shape) or shape[0] % kind.block:
            raise self.error(
                f"has the tensor {name!r} of shape {list(shape)}, which blocks of {kind.block} "
                f"weights ({kind.name}) do not fill"
            )
        return name, shape[::-1], kind, offset


def _map(path: Path) -> mmap.mmap:
    """The file in memory. Private, so that torch may take it for writable; nobody writes."""
    try:
        with path.open("rb") as file:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise ModelError(f"{path} is not a regular file")
            if status.st_size < 24:
                raise ModelError(f"{path} has {status.st_size} bytes: it is no GGUF file")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None


def expected_shards(path: Path) -> list[Path]:
    """`path`, or all files of the split model that its name makes it a part of, in order."""
    match = _SHARD.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match[3])
    if not 0 < int(match[2]) <= count <= _MOST_SHARDS:
        raise ModelError(f"{path}: a split file's name holds its number and the count of parts")
    return [path.with_name(f"{match[1]}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]


def shard_paths(path: Path) -> list[Path]:
    """As `expected_shards`. Raises ModelError if one of them is missing."""
    paths = expected_shards(path)
    for part in paths:
        if not part.is_file():
            raise ModelError(f"{part} does not exist: all {len(paths)} parts of a model are read")
    return paths


def model_stem(path: Path) -> str:
    """The name a model is served under: the file's, without the numbers of its parts."""
    match = _SHARD.fullmatch(path.name)
    return match[1] if match else path.stem


class GGUFModel:
    """One file, or the parts of a split model, as one set of tensors. Metadata is the first's."""

    def __init__(self, path: Path) -> None:
        self.files = [GGUFFile(part) for part in shard_paths(path)]
        self.metadata = self.files[0]
        self.tensors: dict[str, tuple[GGUFFile, TensorInfo]] = {}
        for file in self.files:
            for name, info in file.tensors.items():
                if name in self.tensors:
                    raise file.error(f"has the tensor {name!r} of another part again")
                self.tensors[name] = file, info
