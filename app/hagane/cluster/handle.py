"""Replicas behind a handle of Ray Serve, which chooses one; requests go to it directly."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
from ray.serve.handle import DeploymentHandle

from hagane.cluster.connection import ReplicaReport
from hagane.cluster.links import Links
from hagane.cluster.routing import Placing, RoutingHint
from hagane.cluster.version import ModelVersion
from hagane.cluster.wire import Address, Outcome
from hagane.pool.messages import AdapterChecked, CheckAdapter, GenerateRequest
from hagane.system.errors import EngineUnavailableError, QueueFullError

# For so long a replica gets nothing after it refused a request, or was lost.
_FULL_SECONDS = 0.25
_LOST_SECONDS = 3.0
_decode_report = msgspec.msgpack.Decoder(ReplicaReport).decode


@dataclass
class _Shut:
    """A replica that takes no request until a moment of `time.monotonic()`."""

    until: float
    full: bool


class HandleReplicas:
    """The replicas behind a handle of Serve's that run `model`."""

    def __init__(self, handle: DeploymentHandle, model: ModelVersion) -> None:
        self._handle, self._model = handle, model
        self._links = Links()
        self._loads: Counter[str] = Counter()
        self._shut: dict[str, _Shut] = {}

    async def generate(
        self, request: GenerateRequest, hint: RoutingHint, deliver: Callable[[Outcome], None]
    ) -> None:
        """As `Replicas.generate`."""
        name, address = await self._choose(hint)
        self._loads[name] += 1

        def note(outcome: Outcome) -> None:
            for failure in outcome.failures:
                if failure.code == "queue_full":
                    self._close(name, _FULL_SECONDS, full=True)
                elif failure.code == "engine_unavailable":
                    self._close(name, _LOST_SECONDS)
            deliver(outcome)

        try:
            link = await self._links.to(name, address)
            await link.generate(request, note)
        except OSError:
            self._close(name, _LOST_SECONDS)
            raise
        finally:
            self._loads[name] -= 1
            if not self._loads[name]:
                del self._loads[name]

    def cancel(self, request_id: str, index: int) -> None:
        """As `Replicas.cancel`."""
        self._links.cancel(request_id, index)

    async def reports(self) -> Sequence[ReplicaReport]:
        """As `Replicas.reports`."""
        answers = await self._handle.broadcast("report").results_async(return_exceptions=True)
        return [_decode_report(answer) for answer in answers if isinstance(answer, bytes)]

    async def check_adapter(self, request: CheckAdapter) -> AdapterChecked:
        """As `Replicas.check_adapter`."""
        answer = await self._handle.check_adapter.remote(msgspec.msgpack.encode(request))
        return msgspec.msgpack.decode(answer, type=AdapterChecked)

    async def close(self) -> None:
        """As `Replicas.close`."""
        await self._links.close()

    async def _choose(self, hint: RoutingHint) -> tuple[str, Address]:
        now = time.monotonic()
        for name in [name for name, shut in self._shut.items() if shut.until < now]:
            del self._shut[name]
        placing = Placing(hint, self._model, self._loads, self._shut)
        # Without a slot reserved: replicas refuse by themselves, and drain by themselves.
        async with self._handle.choose_replica(placing=placing, _reserve=False) as chosen:
            metadata = chosen.replica_metadata
        if not placing.fitting:
            other = msgspec.convert(metadata["model"], ModelVersion)
            raise EngineUnavailableError(
                f"No replica has the model of this server, {self._model}; one has {other}. "
                "Are the model's files equal on all machines?",
                retry_after=5.0,
            )
        if all(name in self._shut and self._shut[name].full for name in placing.fitting):
            message = "All replicas have as many requests as they take; try again in a moment."
            raise QueueFullError(message, retry_after=1.0)
        return chosen.replica_id, msgspec.convert(metadata["address"], Address)

    def _close(self, name: str, seconds: float, *, full: bool = False) -> None:
        self._shut[name] = _Shut(time.monotonic() + seconds, full)
