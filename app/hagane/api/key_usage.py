"""Stores what each key uses, day by day."""

from __future__ import annotations

import asyncio

from hagane.api.limits import KeyUsage
from hagane.store.keys import ApiKeys
from hagane.system.loops import BackgroundLoop

# A crash loses the counts of at most this long.
_SECONDS = 10.0


class KeyUsageLog:
    """Brings the counts of `usage` to the store, from time to time and at the end."""

    def __init__(self, usage: KeyUsage, stored: ApiKeys) -> None:
        self._usage, self._stored = usage, stored
        self.loop = BackgroundLoop("key usage", self._round)

    async def _round(self) -> float:
        await self.flush()
        return _SECONDS

    async def flush(self) -> None:
        """Store what was counted so far. Raises DiskFullError, and keeps the counts."""
        days = self._usage.take_days()
        if not days:
            return
        try:
            await asyncio.to_thread(self._stored.add_use, days)
        except BaseException:
            self._usage.put_back(days)
            raise

    async def stop(self) -> None:
        """Store the rest."""
        if self.loop.running:
            await self.loop.stop()
            await self.flush()
