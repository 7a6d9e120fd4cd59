"""What a server removes from time to time: expired files, states of jobs that are over."""

from __future__ import annotations

import asyncio

from hagane.store.files import MOST_EXPIRED
from hagane.store.store import Store
from hagane.system.loops import BackgroundLoop
from hagane.training.jobs.state_mirror import forget_states

_PERIOD_SECONDS = 600.0
# While there is more to do.
_NEXT_SECONDS = 1.0


def housekeeping(store: Store) -> BackgroundLoop:
    """The loop that does so."""

    async def tidy() -> float:
        expired = await asyncio.to_thread(store.files.expire)
        if store.blobs is not None:
            await asyncio.to_thread(forget_states, store.blobs, store.jobs)
        return _NEXT_SECONDS if expired == MOST_EXPIRED else _PERIOD_SECONDS

    return BackgroundLoop("housekeeping", tidy)
