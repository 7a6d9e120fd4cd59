"""Models on this machine that requests may name without any job having made them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hagane.text.hub import models_in


class OfferedModels:
    """The models that the settings name, and those in a store, which may come and go.

    `named` are directories and GGUF files by name; `directory` is the store.
    """

    def __init__(self, named: Mapping[str, Path], directory: Path | None = None) -> None:
        self._named, self._directory = dict(named), directory

    def current(self) -> dict[str, Path]:
        """The models as of now, by name, which reads the store's directory."""
        found = {} if self._directory is None else models_in(self._directory)
        return found | self._named
