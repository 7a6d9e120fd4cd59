"""Whole models that came of jobs, by name."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Models:
    """`directory` has a link for every model that may be served; the files stay with their job."""

    directory: Path

    def publish(self, name: str, target: Path) -> None:
        """Let `name`, a bare file name, stand for the model in `target`, until withdrawn."""
        self.directory.mkdir(parents=True, exist_ok=True)
        # Relative: a data directory may be moved, or mounted elsewhere.
        with contextlib.suppress(FileExistsError):
            (self.directory / name).symlink_to(os.path.relpath(target, self.directory))

    def withdraw(self, name: str) -> None:
        """Let `name` stand for nothing any more."""
        (self.directory / name).unlink(missing_ok=True)
