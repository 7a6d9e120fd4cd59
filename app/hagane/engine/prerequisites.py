"""Requests wait here, outside the scheduler, for all that their steps need.

A prerequisite is known by the digest of its content: an adapter in the banks, a compiled grammar.
Each kind has a provider, which makes it ready in a thread of its own. The scheduler only sees
requests that can run.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Protocol

from hagane.pool.messages import IDLE_PRIORITY, FailureCode, GenerateRequest
from hagane.system.errors import QueueFullError


@dataclass(frozen=True)
class Failure:
    """Why a request cannot run."""

    code: FailureCode
    message: str


@dataclass(frozen=True)
class Settled:
    """A prerequisite is there, or, with a failure, will never be."""

    digest: str
    failure: Failure | None = None


class Provider(Protocol):
    """Makes one kind of prerequisite ready, such as `Adapters`.

    >>> provider.want(request)  # begins to load it
    '6f0c...'
    >>> list(provider.poll(in_use=set()))  # between two steps, later
    [Settled(digest='6f0c...', failure=None)]
    """

    @property
    def busy(self) -> bool:
        """Whether `poll` has anything to look after."""

    def want(self, request: GenerateRequest) -> str | None:
        """The digest that `request` has to wait for; None if it can run as far as this kind goes.

        `poll` will return the digest.
        """

    def poll(self, in_use: Set[str]) -> Iterator[Settled]:
        """The prerequisites settled since the last call. Those `in_use` stay."""


@dataclass(frozen=True)
class Released:
    """A request that waits no more: it can run, or fails. `arrived` is when it was added."""

    request: GenerateRequest
    arrived: float
    failure: Failure | None = None


@dataclass(frozen=True)
class _Held:
    request: GenerateRequest
    arrived: float
    wanted: frozenset[str]
    missing: set[str]


class Prerequisites:
    """Holds at most `limit` requests, in the order of arrival, until `providers` are ready.

    Moments are `time.monotonic()` values, here and below.
    """

    def __init__(self, *providers: Provider, limit: int) -> None:
        self._providers, self._limit = providers, limit
        self._held: list[_Held] = []

    def __len__(self) -> int:
        return len(self._held)

    @property
    def busy(self) -> bool:
        """Whether `poll` has anything to look after."""
        return bool(self._held) or any(provider.busy for provider in self._providers)

    def ready(self, request: GenerateRequest, now: float) -> bool:
        """Whether a new request can run at once; if not, it is held until `poll` releases it.

        Raises QueueFullError.
        """
        wanted = {digest for p in self._providers if (digest := p.want(request)) is not None}
        if not wanted:
            return True
        if len(self._held) >= self._limit:
            raise QueueFullError(
                f"{len(self._held)} requests wait for their adapters or grammars already; try "
                "again later.",
                retry_after=1.0,
            )
        self._held.append(_Held(request, now, frozenset(wanted), wanted))
        return False

    @property
    def urgent(self) -> bool:
        """Whether a request waits here that is not of idle priority."""
        return any(held.request.priority < IDLE_PRIORITY for held in self._held)

    def cancel(self, request_id: str) -> None:
        """Drop a request. Unknown ids are ignored."""
        self._held = [held for held in self._held if held.request.request_id != request_id]

    def pause(self, now: float, longest: float) -> float:
        """How long an engine may sleep before the next deadline, in seconds."""
        deadlines = [h.request.deadline for h in self._held if h.request.deadline is not None]
        return max(0.0, min([longest, *(deadline - now for deadline in deadlines)]))

    def poll(self, now: float, in_use: Set[str]) -> Iterator[Released]:
        """Between two steps: the requests that wait no more.

        `in_use` are the digests that live requests need. Each released request must be added to
        the scheduler before the next one is taken.
        """
        yield from self._expire(now)
        for provider in self._providers:
            if not provider.busy:
                continue
            # A prerequisite must stay while its request waits for another one.
            kept = {digest for held in self._held for digest in held.wanted - held.missing}
            for settled in provider.poll(in_use | kept):
                yield from self._settle(settled)

    def _settle(self, settled: Settled) -> Iterator[Released]:
        waiting, self._held = self._held, []
        released = []
        for held in waiting:
            concerned = settled.digest in held.missing
            held.missing.discard(settled.digest)
            if concerned and (settled.failure is not None or not held.missing):
                released.append(Released(held.request, held.arrived, settled.failure))
            else:
                self._held.append(held)
        yield from released

    def _expire(self, now: float) -> Iterator[Released]:
        waiting, self._held = self._held, []
        late: list[_Held] = []
        for held in waiting:
            deadline = held.request.deadline
            (self._held if deadline is None or deadline > now else late).append(held)
        failure = Failure("deadline_exceeded", "The request's deadline has passed.")
        for held in late:
            yield Released(held.request, held.arrived, failure)
