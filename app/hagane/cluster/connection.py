"""Engines of a cluster as one engine: what `EngineClient` sends goes to one of many replicas.

A request whose replica dies before its first token is sent to another; later ones fail with an
error to try again by, as with an engine of the server's own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from hagane.cluster.routing import RoutingHint
from hagane.cluster.wire import Outcome
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
# Failures that another replica may do better.
_ELSEWHERE = ("engine_crashed", "engine_unavailable", "queue_full")
# Longer prompts are hashed in a thread.
_INLINE_TOKENS = 2048


class ReplicaReport(msgspec.Struct, frozen=True):
    """What a replica says of itself; `queued_tokens` are those of prompts without a token yet."""

    replica: str
    ready: EngineReady
    stats: EngineStats
    queued_tokens: int = 0


class Replicas(Protocol):
    """All replicas of one model. Whatever its methods raise means that the replica was lost."""

    async def generate(
        self, request: GenerateRequest, hint: RoutingHint, deliver: Callable[[Outcome], None]
    ) -> None:
        """Run a request at the best replica until it has ended; cancelling this cancels it.

        Its deadline is in seconds from now: no clock is shared between machines. Raises
        QueueFullError where no replica takes more, HaganeError where none can run it.
        """
        ...

    def cancel(self, request_id: str, index: int) -> None:
        """Stop one continuation of a request."""
        ...

    async def reports(self) -> Sequence[ReplicaReport]:
        """What those that answer say of themselves."""
        ...

    async def check_adapter(self, request: CheckAdapter) -> AdapterChecked:
        """Have one of them read an adapter."""
        ...

    async def close(self) -> None:
        """End the connections to them; they go on."""
        ...


class ClusterConnection:
    """An `EngineConnection` to replicas."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas
        self._receive: Callable[[FromEngine], None] = _nobody
        self._requests: dict[str, asyncio.Task[None]] = {}
        self._others: set[asyncio.Task[None]] = set()
        self._reports: dict[str, tuple[float, ReplicaReport]] = {}
        self._stats = EngineStats()
        self._asking = asyncio.Lock()
        self._stopped = asyncio.Event()

    def send(self, message: ToEngine) -> None:
        """Begin a request, cancel one, or have an adapter checked.

        Replicas give the memory of adapters back when they need it.
        """
        match message:
            case GenerateRequest():
                task = asyncio.create_task(self._generate(message))
                self._requests[message.request_id] = task
                task.add_done_callback(lambda _: self._requests.pop(message.request_id, None))
            case CancelRequest(index=None):
                if (running := self._requests.get(message.request_id)) is not None:
                    running.cancel()
            case CancelRequest(index=int() as index):
                self._replicas.cancel(message.request_id, index)
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
        heard = time.monotonic()
        ready: EngineReady | None = None
        while not self._stopped.is_set():
            try:
                reports = await self._ask(_SILENCE_SECONDS)
                if not reports:
                    raise EngineUnavailableError("No replica of the model answers.")
            except Exception as error:
                receive(Heartbeat())
                if ready is not None and time.monotonic() - heard > _SILENCE_SECONDS:
                    raise EngineUnavailableError("No replica of the model answers.") from error
            else:
                heard = time.monotonic()
                # Of a replica that is there, as long as it is.
                if all(report.ready != ready for report in reports):
                    ready = reports[0].ready
                    receive(ready)
                receive(StepOutput(stats=self._stats))
            await self._pause()
        return Ending("exited", 0)

    async def refresh(self, seconds: float) -> None:
        """Have the figures of now, of the replicas that give them within `seconds`.

        Those of the last round are older, and by another age at each edge: read from several of
        them in turn, counters would seem to fall.
        """
        try:
            await self._ask(seconds)
        except Exception as error:
            logger.warning("the replicas' figures are those of before: %s", error)
        else:
            self._receive(StepOutput(stats=self._stats))

    async def stop(self, grace: float) -> None:
        """End the connection; the replicas go on."""
        self._stopped.set()
        for task in (*self._requests.values(), *self._others):
            task.cancel()
        await asyncio.gather(*self._requests.values(), *self._others, return_exceptions=True)
        await self._replicas.close()

    @property
    def reports(self) -> list[ReplicaReport]:
        """The latest of each replica that was heard of lately."""
        return [report for _, report in self._reports.values()]

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(_REPORT_SECONDS):
                await self._stopped.wait()
        except TimeoutError:
            return

    async def _generate(self, request: GenerateRequest) -> None:
        if len(request.prompt) > _INLINE_TOKENS:
            hint = await asyncio.to_thread(RoutingHint.of, request)
        else:
            hint = RoutingHint.of(request)
        for attempt in range(1, _MOST_TRIES + 1):
            run = _Run(self, attempt < _MOST_TRIES)
            left = request
            if request.deadline is not None:
                seconds = request.deadline - time.monotonic()
                left = msgspec.structs.replace(request, deadline=seconds)
            try:
                await self._replicas.generate(left, hint, run.deliver)
                if run.refused is None:
                    return
            except HaganeError as error:
                self._fail(request, _failure_code(error), str(error))
                return
            except Exception as error:
                logger.warning("a replica was lost: %s", error)
                if run.begun:
                    message = "The engine stopped while this request ran. Send it again."
                    self._fail(request, "engine_crashed", message)
                    return
            # A full replica says so at once; one that is lost may be the only one for a while.
            if run.refused != "queue_full" and attempt < _MOST_TRIES:
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
        self.pass_on(Outcome(failures=(RequestFailed(request.request_id, code, message),)))

    def pass_on(self, outcome: Outcome) -> None:
        """Hand tokens and failures to the client."""
        self._receive(
            StepOutput(deltas=outcome.deltas, failures=outcome.failures, stats=self._stats)
        )

    async def _ask(self, seconds: float) -> Sequence[ReplicaReport]:
        """What the replicas say of themselves, which is noted."""
        # One after the other: an older answer must not follow a newer one.
        async with asyncio.timeout(seconds), self._asking:
            reports = await self._replicas.reports()
        now = time.monotonic()
        for report in reports:
            self._reports[report.replica] = now, report
        for name, (seen, _) in list(self._reports.items()):
            if seen < now - _FORGOTTEN_SECONDS:
                del self._reports[name]
        self._stats = add_up([report.stats for report in self.reports])
        return reports


class _Run:
    """A request at one replica, and what became of it there.

    A failure that another replica may do better is kept in `refused`, if the request `may_move`
    and has no token yet.
    """

    def __init__(self, connection: ClusterConnection, may_move: bool) -> None:
        self._connection, self._may_move = connection, may_move
        self.begun = False
        self.refused: FailureCode | None = None

    def deliver(self, outcome: Outcome) -> None:
        """Pass on what the replica sent."""
        self.begun = self.begun or bool(outcome.deltas)
        if self._may_move and not self.begun and outcome.failures:
            code = outcome.failures[0].code
            if code in _ELSEWHERE:
                self.refused = code
                return
        self._connection.pass_on(outcome)


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


def _failure_code(error: HaganeError) -> FailureCode:
    return "queue_full" if isinstance(error, QueueFullError) else "engine_unavailable"


def _nobody(_: FromEngine) -> None:
    return
