"""Engines of a cluster as one engine: what `EngineClient` sends goes to one of many replicas.

A request whose replica dies before its first token is sent to another; later ones fail with an
error to try again by, as with an engine of the server's own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

import msgspec

from hagane.cluster.routing import RoutingHint
from hagane.pool.messages import (
    AdapterChecked,
    CancelRequest,
    CheckAdapter,
    EngineReady,
    EngineStats,
    FailureCode,
    FromEngine,
    GenerateRequest,
    Heartbeat,
    RequestFailed,
    StepOutput,
    ToEngine,
    TokenDelta,
)
from hagane.pool.process import Ending
from hagane.system.errors import EngineUnavailableError, HaganeError, QueueFullError

logger = logging.getLogger(__name__)

_Stats = TypeVar("_Stats", bound=msgspec.Struct)

_REPORT_SECONDS = 1.0
# Without an answer from any replica for so long there is none.
_SILENCE_SECONDS = 15.0
# Replicas that are not heard of for so long have gone, and their figures with them.
_FORGOTTEN_SECONDS = 30.0
_MOST_TRIES = 4
_RETRY_SECONDS = 0.2


class ReplicaReport(msgspec.Struct, frozen=True):
    """What a replica says of itself."""

    replica: str
    ready: EngineReady
    stats: EngineStats


class Outcome(msgspec.Struct, frozen=True):
    """One message of a stream: deltas of a step, or why there will be none."""

    deltas: tuple[TokenDelta, ...] = ()
    failure: RequestFailed | None = None


class Replicas(Protocol):
    """All replicas of one model. Whatever its methods raise means that the replica was lost.

    `seconds` is the time that is left for a request: no clock is shared between machines.
    """

    def generate(
        self, request: GenerateRequest, seconds: float | None, hint: RoutingHint
    ) -> AsyncGenerator[Outcome, None]:
        """The outcomes of a request at the best replica; closing it cancels. Raises QueueFullError
        where none takes more."""
        ...

    async def report(self) -> ReplicaReport:
        """What one of them says of itself."""
        ...

    async def check_adapter(self, request: CheckAdapter) -> AdapterChecked:
        """Have one of them read an adapter."""
        ...


class ClusterConnection:
    """An `EngineConnection` to replicas."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas
        self._receive: Callable[[FromEngine], None] = _nobody
        self._requests: dict[str, asyncio.Task[None]] = {}
        self._others: set[asyncio.Task[None]] = set()
        self._reports: dict[str, tuple[float, ReplicaReport]] = {}
        self._stopped = asyncio.Event()

    def send(self, message: ToEngine) -> None:
        """Begin a request, cancel one, or have an adapter checked.

        Replicas give the memory of adapters back when they need it; a single continuation of a
        request is cancelled with the last of the others.
        """
        match message:
            case GenerateRequest():
                task = asyncio.create_task(self._generate(message))
                self._requests[message.request_id] = task
                task.add_done_callback(lambda _: self._requests.pop(message.request_id, None))
            case CancelRequest(index=None):
                if (running := self._requests.get(message.request_id)) is not None:
                    running.cancel()
            case CheckAdapter():
                checking = asyncio.create_task(self._check(message))
                self._others.add(checking)
                checking.add_done_callback(self._others.discard)
            case _:
                pass

    async def run(self, receive: Callable[[FromEngine], None]) -> Ending:
        """Report readiness and figures until it is stopped.

        Raises EngineUnavailableError where no replica answers any more.
        """
        self._receive = receive
        heard, ready = time.monotonic(), False
        while not self._stopped.is_set():
            try:
                async with asyncio.timeout(_SILENCE_SECONDS):
                    report = await self._replicas.report()
            except Exception as error:
                receive(Heartbeat())
                if ready and time.monotonic() - heard > _SILENCE_SECONDS:
                    raise EngineUnavailableError("No replica of the model answers.") from error
            else:
                heard = time.monotonic()
                self._note(report)
                if not ready:
                    receive(report.ready)
                    ready = True
                receive(StepOutput(stats=self._stats()))
            await self._pause()
        return Ending("exited", 0)

    async def stop(self, grace: float) -> None:
        """End the connection; the replicas go on."""
        self._stopped.set()
        for task in (*self._requests.values(), *self._others):
            task.cancel()
        await asyncio.gather(*self._requests.values(), *self._others, return_exceptions=True)

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(_REPORT_SECONDS):
                await self._stopped.wait()
        except TimeoutError:
            return

    async def _generate(self, request: GenerateRequest) -> None:
        hint = await asyncio.to_thread(RoutingHint.of, request)
        for attempt in range(1, _MOST_TRIES + 1):
            begun = False
            seconds = None if request.deadline is None else request.deadline - time.monotonic()
            try:
                async with aclosing(self._replicas.generate(request, seconds, hint)) as outcomes:
                    async for outcome in outcomes:
                        begun = begun or bool(outcome.deltas)
                        failures = () if outcome.failure is None else (outcome.failure,)
                        if failures and not begun and _again(failures[0]) and attempt < _MOST_TRIES:
                            break
                        self._pass_on(outcome.deltas, failures)
                    else:
                        return
            except QueueFullError as error:
                self._fail(request, "queue_full", str(error))
                return
            except Exception as error:
                logger.warning("a replica was lost: %s", error)
                if begun:
                    message = "The engine stopped while this request ran. Send it again."
                    self._fail(request, "engine_crashed", message)
                    return
            await asyncio.sleep(_RETRY_SECONDS * attempt)
        self._fail(request, "engine_unavailable", "No replica of the model could be reached.")

    async def _check(self, request: CheckAdapter) -> None:
        try:
            answer = await self._replicas.check_adapter(request)
        except Exception as error:
            message = str(error) if isinstance(error, HaganeError) else "no replica answered"
            answer = AdapterChecked(request.adapter.digest, message)
        self._receive(answer)

    def _fail(self, request: GenerateRequest, code: FailureCode, message: str) -> None:
        self._pass_on((), (RequestFailed(request.request_id, code, message),))

    def _pass_on(self, deltas: tuple[TokenDelta, ...], failures: tuple[RequestFailed, ...]) -> None:
        self._receive(StepOutput(deltas=deltas, failures=failures, stats=self._stats()))

    def _note(self, report: ReplicaReport) -> None:
        now = time.monotonic()
        self._reports[report.replica] = now, report
        for name, (seen, _) in list(self._reports.items()):
            if seen < now - _FORGOTTEN_SECONDS:
                del self._reports[name]

    def _stats(self) -> EngineStats:
        """The sum over the replicas that were heard of lately."""
        return add_up([report.stats for _, report in self._reports.values()])


def add_up(parts: list[EngineStats]) -> EngineStats:
    """The figures of several engines as those of one."""
    return _sum(EngineStats, parts)


def _sum(kind: type[_Stats], parts: Sequence[_Stats]) -> _Stats:
    """The sum of each field; fields that are figures themselves are summed the same way."""
    sums: dict[str, Any] = {}
    for name, empty in zip(kind.__struct_fields__, kind.__struct_defaults__, strict=True):
        values = [getattr(part, name) for part in parts]
        nested = isinstance(empty, msgspec.Struct)
        sums[name] = _sum(type(empty), values) if nested else sum(values)
    return kind(**sums)


def _again(failure: RequestFailed) -> bool:
    """Whether another replica may do better."""
    return failure.code in ("engine_crashed", "engine_unavailable")


def _nobody(_: FromEngine) -> None:
    return
