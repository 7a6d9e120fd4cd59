"""Background loops that outlive whatever one of their rounds raises, and conditions to wait for.

>>> loop = BackgroundLoop("sweeper", sweep)   # async def sweep() -> float: seconds until the next
>>> loop.start()
>>> loop.failures, loop.failing
(0, False)
>>> await loop.stop()
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from hagane.system.errors import StoreUnavailableError

logger = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 30.0
_STOP_SECONDS = 0.5


class Backoff:
    """Pauses in seconds that double from `first` to `longest`."""

    def __init__(
        self, first: float = _FIRST_PAUSE_SECONDS, longest: float = _LONGEST_PAUSE_SECONDS
    ) -> None:
        self._first, self._longest, self._next = first, longest, first

    def next(self) -> float:
        """The next pause."""
        pause, self._next = self._next, min(2 * self._next, self._longest)
        return pause

    def reset(self) -> None:
        """Begin with the first pause again."""
        self._next = self._first


class BackgroundLoop:
    """Runs `round_` again and again on the event loop, each time after the pause it returned.

    An exception is logged with its traceback and counted; the next round follows after a pause
    that grows while rounds fail. Only cancellation ends the loop.

    Attributes:
        name: how logs and metrics name the loop.
        failures: rounds that raised, since the start.
        failing: whether it pauses after a round that raised.
    """

    def __init__(
        self, name: str, round_: Callable[[], Awaitable[float]], backoff: Backoff | None = None
    ) -> None:
        self.name = name
        self.failures = 0
        self.failing = False
        self._round, self._backoff = round_, backoff or Backoff()
        self._task: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Whether the loop goes on: from `start` to `stop`."""
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """Begin, in the background."""
        self._task = asyncio.create_task(self.run(), name=self.name)

    async def stop(self) -> None:
        """End the loop and wait until it has ended; its round is cancelled."""
        if self._task is not None:
            # Again and again: a round may await what swallows a cancellation.
            while not self._task.done():
                self._task.cancel()
                await asyncio.wait((self._task,), timeout=_STOP_SECONDS)

    async def run(self) -> None:
        """The loop itself, for an event loop that has nothing else to do."""
        while True:
            await asyncio.sleep(await self._survive())

    async def _survive(self) -> float:
        """One round; returns the pause after it."""
        self.failing = False
        try:
            pause = await self._round()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # A panic of a library in Rust is no Exception, and what a round awaits may have been
            # cancelled without the loop.
            if isinstance(error, asyncio.CancelledError) and _cancelled():
                raise
            self.failures += 1
            self.failing = True
            pause = self._backoff.next()
            if isinstance(error, StoreUnavailableError):
                # All loops meet it, again and again; its message has all there is to know.
                logger.error("%s failed; it goes on in %.2f s: %s", self.name, pause, error)
            else:
                logger.exception("%s failed; it goes on in %.2f s", self.name, pause)
        else:
            self._backoff.reset()
        return pause


def _cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Changes:
    """Wakes those who wait for a condition over state that changes on the event loop.

    >>> changes = Changes()
    >>> await changes.wait_for(lambda: not streams)
    >>> streams.clear(); changes.notify()  # elsewhere
    """

    def __init__(self) -> None:
        self._event: asyncio.Event | None = None

    def notify(self) -> None:
        """Say that something changed."""
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        """Return as soon as `condition` holds."""
        while not condition():
            if self._event is None:
                self._event = asyncio.Event()
            await self._event.wait()
