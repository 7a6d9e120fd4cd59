"""Adapters that several servers share: objects by their digest, cached on each server.

An adapter is served from the cache alone, so that a directory of the same name on another machine
is never taken for it. What is fetched is served only if its content has the digest.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import threading
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from hagane.lora.config import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, adapter_digest
from hagane.system.errors import ModelError
from hagane.system.files import commit_folder, refused_when_full

if TYPE_CHECKING:
    from hagane.store.blobs import Blobs
    from hagane.store.database import Database

logger = logging.getLogger(__name__)

# In the data directory; users' own adapters may be in one that is called "adapters".
CACHE_FOLDER = "adapter-cache"
_FILES = (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE)
# Requests that began before an adapter was withdrawn may need its files for so long.
_ABANDONED_SECONDS = 86400.0
_CACHED = re.compile(r"[0-9a-f]{64}|\.[0-9a-f]{64}\.[0-9a-f]{8}\.partial")


class SharedAdapters:
    """The adapters in `blobs`, and in `folder` those that this server has used."""

    def __init__(self, blobs: Blobs, folder: Path) -> None:
        self._blobs, self._folder = blobs, folder
        self._fetching: dict[str, threading.Lock] = {}

    def cached(self, digest: str) -> Path | None:
        """The adapter's directory, if it is on this machine."""
        path = self._folder / digest
        return path if path.is_dir() else None

    def put(self, directory: Path, digest: str) -> None:
        """Share the adapter in `directory`. Raises StoreUnavailableError, DiskFullError."""
        # The weights first: where the configuration is, all is there.
        for name in reversed(_FILES):
            if not self._blobs.has(_object(digest, name)):
                self._blobs.put(_object(digest, name), directory / name)

    def fetch(self, digest: str) -> Path:
        """The adapter's directory, which is filled now if need be.

        Raises NotFoundError, StoreUnavailableError, DiskFullError, and ModelError for content that
        has another digest.
        """
        # One that is fetched waits for no other; setdefault is atomic.
        with self._fetching.setdefault(digest, threading.Lock()):
            if (found := self.cached(digest)) is not None:
                return found
            partial = self._folder / f".{digest}.{uuid.uuid4().hex[:8]}.partial"
            try:
                with refused_when_full(self._folder.parent):
                    partial.mkdir(parents=True)
                    for name in _FILES:
                        self._blobs.get(_object(digest, name), partial / name)
                if (found_digest := adapter_digest(partial)) != digest:
                    raise ModelError(
                        f"The adapter {digest[:12]} in {self._blobs.place} has the content of "
                        f"{found_digest[:12]}: it was damaged or changed; store it again."
                    )
                # Another process with this folder may have been faster.
                with refused_when_full(self._folder.parent):
                    commit_folder(partial, self._folder / digest)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        logger.info("fetched the adapter %s", digest[:12])
        return self._folder / digest

    @contextlib.contextmanager
    def shared(self, database: Database, directory: Path, digest: str) -> Iterator[None]:
        """Share as `put` does; in the context, which gives it a name, nobody can forget it."""
        self.put(directory, digest)
        with self.kept(database, digest):
            # Somebody may have forgotten it after it was found to be there.
            self.put(directory, digest)
            yield

    def kept(self, database: Database, digest: str) -> AbstractContextManager[None]:
        """Nobody else shares or forgets the adapter as long as the context is open."""
        return database.exclusive(f"adapters/{digest}")

    def delete(self, digest: str) -> None:
        """Remove an adapter that no name stands for. Raises StoreUnavailableError."""
        for name in _FILES:
            self._blobs.delete(_object(digest, name))

    def sweep(self, digests: Collection[str]) -> None:
        """Remove what is cached here and has none of `digests`, and what a crash left."""
        if not self._folder.is_dir():
            return
        for path in self._folder.iterdir():
            if path.name in digests or not _CACHED.fullmatch(path.name):
                continue
            # Another server of the same directory may be sweeping.
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)


def _object(digest: str, name: str) -> str:
    return f"adapters/{digest}/{name}"
