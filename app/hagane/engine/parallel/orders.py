"""What the leading rank tells the others: a step's batch, and adapters, which it has checked.

The others run the same forward passes and need nothing else of the engine. Orders go over a Unix
socket pair to each of them, in the frames of `hagane.pool.channel`.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping, Sequence

import msgspec
import torch
from torch import Tensor

from hagane.engine.parallel.meeting import Place
from hagane.engine.step.batch import Batch
from hagane.lora.config import AdapterConfig
from hagane.lora.files import Adapter, LowRank
from hagane.pool.channel import encode
from hagane.pool.messages import EngineConfig

_LENGTH = struct.Struct("<I")


class Join(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The first order: the engine's config, this rank, its place, and the file to meet at."""

    config: EngineConfig
    rank: int
    place: Place
    meeting: str


class RunStep(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The fields of a `Batch` that a forward pass needs, and the blocks to copy before it."""

    token_ids: list[int]
    positions: list[int]
    slots: list[int]
    tables: list[list[int]]
    starts: list[int]
    lengths: list[int]
    decodes: int
    block_size: int
    logit_rows: list[int]
    hidden_rows: list[int]
    adapters: list[int] | None
    copies: list[tuple[int, int]]

    @classmethod
    def of(cls, batch: Batch, copies: Sequence[tuple[int, int]]) -> RunStep:
        fields = {name: getattr(batch, name) for name in cls.__struct_fields__[:-1]}
        return cls(**fields, copies=list(copies))

    def batch(self) -> Batch:
        names = self.__struct_fields__[:-1]
        return Batch(**{name: getattr(self, name) for name in names})


class Matrix(msgspec.Struct, frozen=True, array_like=True):
    """A tensor on the host."""

    dtype: str
    shape: list[int]
    data: bytes

    @classmethod
    def of(cls, tensor: Tensor) -> Matrix:
        dtype = str(tensor.dtype).removeprefix("torch.")
        flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
        return cls(dtype, list(tensor.shape), flat.numpy().tobytes())

    def tensor(self) -> Tensor:
        flat = torch.frombuffer(bytearray(self.data), dtype=getattr(torch, self.dtype))
        return flat.view(self.shape)


class Change(msgspec.Struct, frozen=True, array_like=True):
    """A `LowRank` whose gain is known."""

    a: Matrix
    b: Matrix
    scale: float
    gain: Matrix | None


class PackAdapter(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Get the adapter of `digest` ready, by the paths of what it changes."""

    digest: str
    rank: int
    alpha: float
    changes: Mapping[str, Change]

    @classmethod
    def of(cls, adapter: Adapter) -> PackAdapter:
        changes = {
            path: Change(
                Matrix.of(change.a),
                Matrix.of(change.b),
                change.scale,
                None if change.gain is None else Matrix.of(change.gain),
            )
            for path, change in adapter.changes.items()
        }
        return cls(adapter.digest, adapter.config.rank, adapter.config.alpha, changes)

    def adapter(self) -> Adapter:
        changes = {
            path: LowRank(
                change.a.tensor(),
                change.b.tensor(),
                change.scale,
                gain=None if change.gain is None else change.gain.tensor(),
            )
            for path, change in self.changes.items()
        }
        config = AdapterConfig(rank=self.rank, alpha=self.alpha)
        return Adapter(config, changes, self.digest)


class PlaceAdapter(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Put a packed adapter into `slot`; without a digest, empty it."""

    slot: int
    digest: str | None


Order = Join | RunStep | PackAdapter | PlaceAdapter


class Orders:
    """A rank's end of the socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._decoder = msgspec.msgpack.Decoder(Order)

    def receive(self) -> Order:
        """The next order. Raises EOFError when the leading rank is gone."""
        (size,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        order: Order = self._decoder.decode(self._exactly(size))
        return order

    def _exactly(self, size: int) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            count = self._socket.recv_into(view)
            if not count:
                raise EOFError("the leading rank is gone")
            view = view[count:]
        return data


def send(connection: socket.socket, order: Order) -> None:
    """Raises OSError when the rank is gone."""
    connection.sendall(encode(order))
