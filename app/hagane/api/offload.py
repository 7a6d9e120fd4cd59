"""Work whose time grows with a request's size, done off the event loop.

Code that holds the interpreter's lock stops the loop from any thread, so that the work itself is
bounded too: see `hagane.api.body` for JSON. Tokenizing releases the lock.
"""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from hagane.api.errors import OverloadedError

P = ParamSpec("P")
T = TypeVar("T")

# Bytes or characters. A thread costs more than what is done with fewer than the first.
_TINY = 2 << 10
_SMALL = 256 << 10
_MOST_WAITING = 64
_TRIM_SECONDS = 1.0


class Offload:
    """Threads in four lanes: small requests wait neither for large ones nor for programs.

    Programs are those of strangers, in processes of their own, that a thread waits for; grammars
    are such ones, and others do not wait for them. One large piece of work runs at a time: it takes
    memory and a core.
    """

    def __init__(self) -> None:
        self._small = ThreadPoolExecutor(4, "small-text")
        self._programs = ThreadPoolExecutor(4, "programs")
        self._grammars = ThreadPoolExecutor(2, "grammars")
        self._large = ThreadPoolExecutor(1, "large-text")
        self._waiting: Counter[ThreadPoolExecutor] = Counter()
        self._trim: asyncio.TimerHandle | None = None

    async def run(
        self, size: int, work: Callable[P, T], /, *arguments: P.args, **named: P.kwargs
    ) -> T:
        """The result of `work`, which reads about `size` bytes or characters.

        Raises OverloadedError when too much large work waits already.
        """
        if size <= _TINY:
            return work(*arguments, **named)
        if size <= _SMALL:
            return await _run(self._small, work, *arguments, **named)
        return await self._wait(self._large, work, *arguments, **named)

    async def run_blocking(
        self, size: int, work: Callable[P, T], /, *arguments: P.args, **named: P.kwargs
    ) -> T:
        """As `run`, never on the event loop: for what may wait for a stranger's program, too."""
        if size <= _SMALL:
            return await _run(self._programs, work, *arguments, **named)
        return await self.run(size, work, *arguments, **named)

    async def run_compiling(
        self, _: int, work: Callable[P, T], /, *arguments: P.args, **named: P.kwargs
    ) -> T:
        """As `run_blocking`, of whatever size: for what waits for a grammar to be compiled."""
        return await self._wait(self._grammars, work, *arguments, **named)

    async def _wait(
        self,
        lane: ThreadPoolExecutor,
        work: Callable[P, T],
        /,
        *arguments: P.args,
        **named: P.kwargs,
    ) -> T:
        if self._waiting[lane] >= _MOST_WAITING:
            raise OverloadedError(
                "Too many requests are being read that take long; try again in a moment.",
                retry_after=1.0,
            )
        self._waiting[lane] += 1
        try:
            return await _run(lane, work, *arguments, **named)
        finally:
            self._waiting[lane] -= 1

    def release_memory(self, size: int) -> None:
        """A request of `size` bytes is done: have the allocator return memory to the system."""
        if size > _SMALL and self._trim is None:
            # A little later: the request's own objects are still there, and others may follow.
            self._trim = asyncio.get_running_loop().call_later(_TRIM_SECONDS, self._start_trim)

    def _start_trim(self) -> None:
        self._trim = None
        self._large.submit(_trim)


async def _run(
    lane: ThreadPoolExecutor, work: Callable[P, T], /, *arguments: P.args, **named: P.kwargs
) -> T:
    context = contextvars.copy_context()

    def call() -> T:
        return context.run(work, *arguments, **named)

    return await asyncio.get_running_loop().run_in_executor(lane, call)


def _trim() -> None:
    """glibc keeps what was freed between smaller objects: hundreds of megabytes of large bodies."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        # Other C libraries have no such function, and no such need.
        return
