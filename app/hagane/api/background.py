"""Answers that are made when their request is over: their events, for those who follow them."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from hagane.api.limits import Account
from hagane.system.errors import RateLimitError

logger = logging.getLogger(__name__)

_MOST_RUNNING = 256
_KEPT_FINISHED = 64


@dataclass
class BackgroundRun:
    """An answer that is made in the background; `shown` is the object as it is now."""

    id: str
    owner: str
    shown: dict[str, Any]
    events: list[dict[str, Any]] = field(default_factory=list)
    task: asyncio.Task[None] | None = None
    done: bool = False
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, event: dict[str, Any]) -> None:
        """Append an event, and wake those who follow."""
        self.events.append(event)
        self._tell()

    def end(self) -> None:
        """No further event comes."""
        self.done = True
        self._tell()

    async def follow(self, after: int) -> AsyncGenerator[dict[str, Any], None]:
        """The events with a sequence number above `after`, to the end."""
        place = after + 1
        while True:
            news = self._news
            while place < len(self.events):
                yield self.events[place]
                place += 1
            if self.done:
                return
            await news.wait()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


class BackgroundRuns:
    """The background runs of one server, and the last finished ones for their followers."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str, BackgroundRun] = OrderedDict()

    def find(self, run_id: str, owner: str) -> BackgroundRun | None:
        """A run of the owner's, while it is known."""
        run = self._runs.get(run_id)
        return run if run is not None and run.owner == owner else None

    def require_room(self) -> None:
        """Raises RateLimitError while as many are being made as may be."""
        if sum(not run.done for run in self._runs.values()) >= _MOST_RUNNING:
            raise RateLimitError(
                f"{_MOST_RUNNING} answers are being made in the background, as many as may be; "
                "try again when some have finished.",
                retry_after=1.0,
            )

    def start(
        self, run: BackgroundRun, account: Account, events: AsyncGenerator[dict[str, Any], None]
    ) -> None:
        """Begin to make an answer, whose events are `events`."""
        self._runs[run.id] = run
        run.task = asyncio.create_task(self._make(run, account, events))

    async def cancel(self, run: BackgroundRun) -> bool:
        """Stop a run; whether it was stopped before its end."""
        if run.task is None or run.done:
            return False
        run.task.cancel()
        await asyncio.gather(run.task, return_exceptions=True)
        return True

    async def stop(self) -> None:
        """Stop all, at the end of the server."""
        tasks = [run.task for run in self._runs.values() if run.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _make(
        self, run: BackgroundRun, account: Account, events: AsyncGenerator[dict[str, Any], None]
    ) -> None:
        try:
            with account.counted():
                async with aclosing(events):
                    async for event in events:
                        run.add(event)
        except Exception:
            logger.exception("the answer %s could not be made in the background", run.id)
        finally:
            run.end()
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        finished = [name for name, run in self._runs.items() if run.done]
        for name in finished[: max(len(finished) - _KEPT_FINISHED, 0)]:
            del self._runs[name]
