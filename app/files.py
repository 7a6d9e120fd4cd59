"""Files that are whole or not there: what a crash at any moment must not break."""

from __future__ import annotations

import os
from pathlib import Path


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


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    commit(partial, path)
