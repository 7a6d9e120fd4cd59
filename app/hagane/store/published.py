"""Links to the standalone models that jobs made, by name."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PublishedModels:
    """`directory` has a link for every published model; its files stay in the job's folder."""

    directory: Path

    def publish(self, name: str, target: Path) -> None:
        """Link `name`, a bare file name, to the model in `target`."""
        self.directory.mkdir(parents=True, exist_ok=True)
        # Relative: a data directory may be moved, or mounted elsewhere.
        with contextlib.suppress(FileExistsError):
            (self.directory / name).symlink_to(os.path.relpath(target, self.directory))

    def withdraw(self, name: str) -> None:
        """Remove the link `name`, if it exists."""
        (self.directory / name).unlink(missing_ok=True)
