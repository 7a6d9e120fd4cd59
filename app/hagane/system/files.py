"""Atomic writes, and careful reads of files that others wrote."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from hagane.system.errors import DiskFullError, ModelError

# A vocabulary of half a million tokens, with all its merges, takes 40 MB.
_LARGEST_JSON = 256 << 20
# No space, no quota, or a file larger than the system allows.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)


def commit(partial: Path, final: Path) -> None:
    """Rename the complete file `partial` to `final`; durable when this returns."""
    _sync(partial)
    # Some writers make files that only their owner can read; the folder decides that here.
    partial.chmod(0o644)
    partial.replace(final)
    _sync(final.parent)


def commit_folder(partial: Path, final: Path) -> None:
    """As `commit`, of a folder of files; a `final` that is there already stays as it is."""
    for path in (*partial.iterdir(), partial):
        _sync(path)
    try:
        partial.rename(final)
    except OSError:
        if not final.is_dir():
            raise
    _sync(final.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def refused_when_full(directory: Path) -> Iterator[None]:
    """Raise DiskFullError instead of OSError when `directory` has no room left."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise full(directory) from error


def is_full(error: BaseException | None) -> bool:
    """Whether a full disk caused `error`, which torch's writer wraps in an error of its own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__context__
    return False


def is_exhausted(error: BaseException) -> bool:
    """Whether the system had no descriptor, process or memory left at the moment."""
    return isinstance(error, OSError) and error.errno in _EXHAUSTED


def full(directory: Path) -> DiskFullError:
    """The error for a write to `directory` that found no room."""
    return DiskFullError(f"The disk of {directory} is full: free some of it, then try again.")


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    commit(partial, path)


@contextmanager
def open_regular(path: Path, limit: int) -> Iterator[BufferedReader]:
    """Open a file of at most `limit` bytes for reading.

    Raises ModelError, also for anything but a regular file: a pipe or a device may never end.
    """
    try:
        # A pipe without a writer would block a plain open.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{path} cannot be read: it is not a regular file")
        if status.st_size > limit:
            raise ModelError(f"{path} has {status.st_size} bytes; at most {limit} are plausible")
        yield file


def read_regular(path: Path, limit: int) -> bytes:
    """Read a file of at most `limit` bytes. Raises ModelError as `open_regular` does."""
    with open_regular(path, limit) as file:
        return file.read(limit)


def read_text(path: Path, limit: int = _LARGEST_JSON) -> str:
    """Read a UTF-8 file, with or without a byte order mark. Raises ModelError."""
    try:
        return read_regular(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is not UTF-8 text: {error}") from None


def read_json_object(path: Path, limit: int = _LARGEST_JSON) -> dict[str, Any]:
    """Read a JSON file that holds an object. Raises ModelError naming the file."""
    try:
        value = json.loads(read_text(path, limit))
    except RecursionError:
        raise ModelError(f"{path} cannot be read as JSON: it is nested too deeply") from None
    except ValueError as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value
