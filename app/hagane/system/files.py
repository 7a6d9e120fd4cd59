"""Files that are whole or not there: what a crash at any moment must not break."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hagane.system.errors import DiskFullError

# No space, no quota, or a file larger than the system allows.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def commit(partial: Path, final: Path) -> None:
    """Put `partial`, which is complete, in the place of `final`; durable when this returns."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    # Writers that keep their files to their owner: a model is as readable as its folder.
    partial.chmod(0o644)
    partial.replace(final)
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def refused_when_full(directory: Path) -> Iterator[None]:
    """Raises DiskFullError instead of the system's error when `directory` has no room left."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise full(directory) from error


def is_full(error: BaseException | None) -> bool:
    """Whether a disk without room is behind `error`: torch's writer fails anew over it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__context__
    return False


def full(directory: Path) -> DiskFullError:
    """What to tell whoever would have written to `directory`."""
    return DiskFullError(f"The disk of {directory} is full: free some of it, then try again.")


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    commit(partial, path)
