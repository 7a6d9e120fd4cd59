"""What a server that shares its database does about the others: shows itself, and follows them."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

from hagane.api.keyring import KeyRing
from hagane.api.openai.interrupted import fail_interrupted
from hagane.store.catalogue import Catalogue
from hagane.store.keys import ApiKey
from hagane.store.store import Store
from hagane.system.errors import StoreUnavailableError
from hagane.system.loops import BackgroundLoop, Backoff

logger = logging.getLogger(__name__)

# Changes by other servers are in force after this long and one reading.
_FOLLOW_SECONDS = 0.5
_BEAT_ROUNDS = 4


class SharedState:
    """Keeps names and keys as fresh as the database, in memory where requests find them.

    `reachable` is False while the database cannot be used: others should get the requests then.
    """

    def __init__(self, store: Store, catalogue: Catalogue, keys: KeyRing) -> None:
        self._store, self._catalogue, self._keys = store, catalogue, keys
        self._revision = -1
        self._rounds = 0
        self.reachable = True
        # Of its own: where others wait for downloads, the sign of life does not.
        self._thread = ThreadPoolExecutor(1, "shared state")
        self.loop = BackgroundLoop("shared state", self._round, Backoff(0.5, 1.0))

    def start(self) -> None:
        """Begin, where the store is shared."""
        if self._store.database.shared:
            self.loop.start()

    async def stop(self) -> None:
        """End, and leave to the others what this server had claimed."""
        if not self.loop.running:
            return
        await self.loop.stop()
        try:
            loop = asyncio.get_running_loop()
            # After a sign of life that may still be under way.
            await loop.run_in_executor(self._thread, self._store.database.leave)
        except StoreUnavailableError as error:
            logger.warning("%s", error)
        finally:
            self._thread.shutdown(wait=False)

    async def _round(self) -> float:
        try:
            loop = asyncio.get_running_loop()
            keys = await loop.run_in_executor(self._thread, self._follow)
        except Exception:
            if self.reachable:
                logger.error("the database cannot be used: readiness is false until it can")
            self.reachable = False
            raise
        if not self.reachable:
            logger.info("the database can be used again")
        self.reachable = True
        for key in keys:
            self._keys.put(key)
        return _FOLLOW_SECONDS

    def _follow(self) -> list[ApiKey]:
        """Show this server and read what changed; returns the keys where they may have."""
        database = self._store.database
        if self._rounds % _BEAT_ROUNDS == 0:
            database.beat()
            fail_interrupted(self._store.responses)
        if self._rounds == 0:
            self._catalogue.sweep()
        revision = self._catalogue.refresh()
        keys = self._store.keys.all() if revision != self._revision else []
        self._revision = revision
        self._rounds += 1
        return keys
