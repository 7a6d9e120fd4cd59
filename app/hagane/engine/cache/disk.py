"""KV blocks in files, one each, which outlive the process.

A file is the first 16 bytes of the SHA-256 of its content, which processors have instructions for,
then the content. Its name is the block's own digest, so that equal prompts find it, in a directory
that is named after all that its bits depend on besides. A file appears whole, by renaming; one that
is damaged is dropped when it is read, and its tokens are computed again.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import IO

from hagane.system.errors import ConfigurationError

logger = logging.getLogger(__name__)

_CHECKSUM_BYTES = 16
_LOCK = "lock"
# Servers that run one model with one directory at a time; each has blocks of its own.
_MOST_ENGINES = 64


class DiskTier:
    """At most `limit` bytes of blocks of `block_bytes` each, least recently used first to go.

    Its `files` are read, written and deleted in one thread, all else is called in the engine's own.
    `loaded` and `lost` count the blocks that were read and those that could not be.

    Args:
        root: directory of the settings, below which every engine has a directory.
        identity: what the bits of a block depend on, besides what its digest covers.

    Raises:
        ConfigurationError: the directory cannot be written, or may not hold even one block.
    """

    def __init__(self, root: Path, identity: str, limit: int, block_bytes: int) -> None:
        self.file_bytes = block_bytes + _CHECKSUM_BYTES
        self._capacity = limit // self.file_bytes
        if not self._capacity:
            raise ConfigurationError(
                f"kv_cache_disk_memory is {limit} bytes, less than one block of {self.file_bytes}: "
                "give it more"
            )
        # Held, and locked, as long as the engine lives.
        self._lock, directory = _open(root, identity)
        self.files = BlockFiles(directory, self.file_bytes)
        _make_room(root, self.files.directory, limit)
        self._known: OrderedDict[bytes, None] = OrderedDict.fromkeys(self.files.scan())
        self.loaded = self.lost = 0

    def close(self) -> None:
        """Leave the directory to another engine."""
        self._lock.close()

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, digest: object) -> bool:
        return digest in self._known

    def count_loaded(self, digest: bytes) -> None:
        """Count a block as read, and as used just now."""
        self.loaded += 1
        if digest in self._known:
            self._known.move_to_end(digest)

    def add(self, digests: Iterable[bytes]) -> list[bytes]:
        """Count blocks as written; returns those whose files are to be deleted for them."""
        self._known.update(dict.fromkeys(digests))
        surplus = len(self._known) - self._capacity
        return [self._known.popitem(last=False)[0] for _ in range(surplus)]

    def count_lost(self, digest: bytes) -> None:
        """Forget a block that could not be read."""
        self.lost += 1
        self._known.pop(digest, None)


class BlockFiles:
    """Files of blocks, `file_bytes` long, in a directory that others may not read."""

    def __init__(self, directory: Path, file_bytes: int) -> None:
        self.directory, self._file_bytes = directory, file_bytes

    def scan(self) -> list[bytes]:
        """Digests of the whole files that are there, least recently used first; others are deleted.

        A process that was killed may have left part of a file.
        """
        found: list[tuple[int, bytes]] = []
        for folder in (entry for entry in os.scandir(self.directory) if entry.is_dir()):
            for entry in os.scandir(folder.path):
                digest, size = _digest_of(entry.name), entry.stat().st_size
                if digest is None or size != self._file_bytes:
                    Path(entry.path).unlink()
                else:
                    found.append((entry.stat().st_mtime_ns, digest))
        return [digest for _, digest in sorted(found)]

    def write(self, digest: bytes, content: memoryview) -> None:
        """Raises OSError, for example where the disk is full."""
        path = self._path(digest)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        part = path.with_suffix(".part")
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                _write_all(file, _checksum(content))
                _write_all(file, content)
            part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise

    def read(self, digest: bytes, content: memoryview) -> bool:
        """Fill `content`; False, and the file is gone, if it is missing or damaged."""
        path = self._path(digest)
        checksum = bytearray(_CHECKSUM_BYTES)
        try:
            with path.open("rb", buffering=0) as file:
                whole = os.readv(file.fileno(), [checksum, content]) == self._file_bytes
            if whole and _checksum(content) == checksum:
                # Blocks are found in this order after a restart.
                with suppress(OSError):
                    os.utime(path)
                return True
            logger.warning("a KV block on disk was damaged and is computed again: %s", path.name)
        except OSError as error:
            logger.warning("a KV block on disk could not be read: %s", error)
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return False

    def delete(self, digests: Iterable[bytes]) -> None:
        """Delete the files of blocks; missing ones are ignored."""
        for digest in digests:
            self._path(digest).unlink(missing_ok=True)

    def _path(self, digest: bytes) -> Path:
        name = digest.hex()
        return self.directory / name[:2] / name


def _open(root: Path, identity: str) -> tuple[IO[bytes], Path]:
    """The lock and the path of the first directory of this name that no engine runs with."""
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for number in range(_MOST_ENGINES):
            directory = root / (f"{identity}.{number}" if number else identity)
            directory.mkdir(mode=0o700, exist_ok=True)
            lock = (directory / _LOCK).open("ab")
            if _try_lock(lock):
                return lock, directory
            lock.close()
    except OSError as error:
        raise ConfigurationError(f"kv_cache_disk {root} cannot be written: {error}") from None
    raise ConfigurationError(
        f"kv_cache_disk {root}: {_MOST_ENGINES} servers use it with this model already; give this "
        "one another directory"
    )


def _try_lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _make_room(root: Path, own: Path, limit: int) -> None:
    """Delete blocks of models and formats that no engine runs with now, beyond `limit` bytes."""
    others = [path for path in root.iterdir() if path != own and (path / _LOCK).is_file()]
    sizes = {path: sum(_size(file) for file in path.rglob("*")) for path in others}
    for path in sorted(others, key=lambda path: path.stat().st_mtime_ns):
        if sum(sizes.values()) <= limit:
            return
        with (path / _LOCK).open("ab") as lock:
            if _try_lock(lock):
                logger.info("KV blocks of another model or format make room: %s", path)
                shutil.rmtree(path, ignore_errors=True)
                del sizes[path]


def _size(path: Path) -> int:
    # Other engines rename and delete files meanwhile.
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _digest_of(name: str) -> bytes | None:
    try:
        digest = bytes.fromhex(name)
    except ValueError:
        return None
    return digest if len(digest) == 32 and digest.hex() == name else None


def _checksum(content: memoryview) -> bytes:
    return sha256(content, usedforsecurity=False).digest()[:_CHECKSUM_BYTES]


def _write_all(file: IO[bytes], content: bytes | memoryview) -> None:
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]
