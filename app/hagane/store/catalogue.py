"""Resolve the model name of a request to the weights that answer it."""

from __future__ import annotations

import dataclasses
import random
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from hagane.store import tables
from hagane.store.adapters import SharedAdapters
from hagane.store.aliases import Aliases, AliasGeneration, Arm
from hagane.store.artifacts import Artifacts, ServedArtifact
from hagane.store.database import Database
from hagane.store.offered import OfferedModels
from hagane.system.errors import ConflictError

# How long changes by other processes may go unnoticed.
_FRESH_SECONDS = 1.0


@dataclass(frozen=True)
class ModelRef:
    """The weights that a name stands for: the default model, an adapter, or a standalone model.

    `id` is the model's own name, also when the request named an alias. `digest` is the hash
    of the adapter's content, so that equal adapters compare equal under any name; its directory is
    None while it has to be fetched. `root` is the model that it changes, in `model_directory`
    unless that is the default one. A standalone model has a `model_directory` alone; its `root` is
    the model that it was trained from. Where the request named an alias, `alias` is that name, and
    `arm` its side that was chosen.
    """

    id: str
    root: str
    adapter_directory: Path | None
    digest: str | None
    created: int
    model_directory: Path | None = None
    alias: str | None = None
    arm: Arm | None = None

    @property
    def standalone(self) -> bool:
        """Whether it is a model of its own, and neither the default one nor an adapter."""
        return self.model_directory is not None and self.digest is None


@dataclass(frozen=True)
class _Names:
    """All names in the database, as of its `version`, and the models on disk."""

    version: tuple[int, int]
    artifacts: dict[str, ServedArtifact]
    aliases: dict[str, AliasGeneration]
    checkpoints: dict[str, tuple[ServedArtifact, bool]]
    offered: dict[str, Path]


class Catalogue:
    """All names that a server of the base model `base` answers to, except the base model's own.

    Names are kept in memory. `lookup` never waits, neither for the disk nor for other writers;
    everything else may, and belongs in a thread.
    """

    def __init__(
        self,
        database: Database,
        base: str,
        offered: OfferedModels | None = None,
        adapters: SharedAdapters | None = None,
    ) -> None:
        self._database = database
        self._base = base
        self._offered = offered or OfferedModels({})
        self._adapters = adapters
        self._artifacts = Artifacts(database)
        self._aliases = Aliases(database)
        self._loading = threading.Lock()
        self._names = self._load()
        self._fresh_until = 0.0

    def lookup(self, name: str) -> ModelRef | None:
        """As `resolve`, from memory alone.

        None also where memory may be out of date: this process has written since, or another one
        may have, or a checkpoint has yet to be marked as asked for. Then ask `resolve`.
        """
        names = self._names
        if self._database.commits != names.version[0] or time.monotonic() > self._fresh_until:
            return None
        found, marked = self._find(names, name)
        here = found is None or not found.digest or found.adapter_directory is not None
        return found if marked and here else None

    def resolve(self, name: str) -> ModelRef | None:
        """Resolve an alias (choosing between target and candidate), an artifact or a checkpoint.

        Returns None for an adapter whose base model is not here, for one that is not promoted, and
        for one that has lost its directory. A standalone model needs no base. An adapter that
        another server has stored is fetched. Raises as `SharedAdapters.fetch` does.
        """
        found, marked = self._find(self._current(), name)
        if found is None or not (marked or self._mark(found.id)):
            return None
        if self._adapters is not None and found.digest and found.adapter_directory is None:
            found = dataclasses.replace(found, adapter_directory=self._adapters.fetch(found.digest))
        return found

    def list(self) -> list[ModelRef]:
        """Adapters and standalone models, oldest first, models on disk, and aliases."""
        names = self._current()
        kept = [stored for stored in names.artifacts.values() if stored.name != self._base]
        served = [found for stored in kept if (found := self._usable(names, stored))]
        aliases = [
            ModelRef(alias.name, alias.target or self._base, None, None, alias.created_at)
            for alias in names.aliases.values()
        ]
        taken = {self._base, *names.artifacts, *names.aliases}
        offered = [
            _standalone(name, path) for name, path in names.offered.items() if name not in taken
        ]
        return served + offered + aliases

    def on_disk(self) -> dict[str, Path]:
        """The models that the settings name and those in the store, by name."""
        return dict(self._current().offered)

    def refresh(self) -> int:
        """Read the names again if anybody has written since.

        Returns a number that is another one after every change by any server.
        """
        return self._current().version[1]

    def sweep(self) -> None:
        """Remove cached adapters that no name stands for."""
        if self._adapters is not None:
            names = self._current()
            stored = [*names.artifacts.values(), *(one for one, _ in names.checkpoints.values())]
            self._adapters.sweep({one.digest for one in stored})

    def register(
        self,
        name: str,
        directory: Path,
        digest: str,
        *,
        replace: bool = False,
        base: str | None = None,
    ) -> ModelRef:
        """Serve the adapter in `directory` under `name` from now on, also after a restart.

        `base` is the model that it changes; None: the default one.
        Raises ConflictError if the name is taken, unless an adapter has it and `replace` is true.
        """
        taken = (
            name == self._base
            or name in self._current().offered
            or self._aliases.resolve(name) is not None
        )
        before = self._artifacts.find(name)
        if taken or (before is not None and (before.standalone or not replace)):
            raise ConflictError(
                f"The name '{name}' is taken; choose another, or unload it first.",
                param="lora_name",
                code="name_taken",
            )
        stored = ServedArtifact(name, base or self._base, str(directory), digest)
        sharing: AbstractContextManager[None] = nullcontext()
        if self._adapters is not None:
            sharing = self._adapters.shared(self._database, directory, digest)
        with sharing:
            self._artifacts.put(stored)
        return self._as_ref(self._current(), stored)

    def _current(self) -> _Names:
        """The names as of now, read again if anybody has written since."""
        with self._loading:
            if self._names.version != self._database.version():
                self._names = self._load()
            else:
                self._names = dataclasses.replace(self._names, offered=self._offered.current())
            self._fresh_until = time.monotonic() + _FRESH_SECONDS
            return self._names

    def _load(self) -> _Names:
        # Asked for first: what is written meanwhile is read now and once more.
        version = self._database.version()
        return _Names(
            version,
            {stored.name: stored for stored in self._artifacts.list()},
            {alias.name: alias for alias in self._aliases.current()},
            self._checkpoints(),
            self._offered.current(),
        )

    def _find(self, names: _Names, name: str) -> tuple[ModelRef | None, bool]:
        """The model of a name, and whether it is final: False for a checkpoint to be marked."""
        alias = names.aliases.get(name)
        if alias is None:
            return (None, True) if name == self._base else self._find_model(names, name)
        arm = alias.choose(random.uniform(0, 100))  # noqa: S311
        found, marked = self._find_model(names, alias.model(arm))
        if found is None and arm == "candidate":
            # A candidate that was deleted costs nobody an answer.
            arm = "target"
            found, marked = self._find_model(names, alias.model(arm))
        return found and dataclasses.replace(found, alias=name, arm=arm), marked

    def _find_model(self, names: _Names, model: str | None) -> tuple[ModelRef | None, bool]:
        if model is None:
            return None, True
        if model == self._base:
            return ModelRef(model, model, None, None, 0), True
        if (stored := names.artifacts.get(model)) is not None:
            return self._usable(names, stored), True
        stored, marked = names.checkpoints.get(model, (None, True))
        if stored is None and (path := names.offered.get(model)) is not None:
            return _standalone(model, path), True
        if stored is None or not (self._fits(names, stored) and self._there(stored)):
            return None, True
        return self._as_ref(names, stored), marked

    def _usable(self, names: _Names, stored: ServedArtifact) -> ModelRef | None:
        usable = stored.promoted and self._fits(names, stored) and self._there(stored)
        return self._as_ref(names, stored) if usable else None

    def _fits(self, names: _Names, stored: ServedArtifact) -> bool:
        """Whether the model that it changes is here; a standalone one needs none."""
        default = stored.root == self._base
        return stored.standalone or default or _model_of(names, stored.root) is not None

    def _there(self, stored: ServedArtifact) -> bool:
        """Whether it can be had: shared adapters always, others where they were left."""
        shared = self._adapters is not None and not stored.standalone
        return shared or stored.path.is_dir()

    def _as_ref(self, names: _Names, stored: ServedArtifact) -> ModelRef:
        """Without a directory for a shared adapter that is yet to be fetched."""
        name, root, created = stored.name, stored.root, stored.created_at
        if stored.standalone:
            return ModelRef(name, root, None, None, created, stored.path)
        path: Path | None = stored.path
        if self._adapters is not None:
            path = self._adapters.cached(stored.digest)
        model = None if root == self._base else _model_of(names, root)
        return ModelRef(name, root, path, stored.digest, created, model)

    def _checkpoints(self) -> dict[str, tuple[ServedArtifact, bool]]:
        """Checkpoints that may be served, and whether a request has named them."""
        checkpoints, jobs = tables.checkpoints, tables.jobs
        query = sa.select(checkpoints, jobs.c.model).join(jobs, jobs.c.id == checkpoints.c.job)
        kept = ("name", "directory", "digest", "created_at")
        with self._database.read() as connection:
            return {
                row["name"]: (
                    ServedArtifact(root=row["model"], **{key: row[key] for key in kept}),
                    row["asked_for"],
                )
                for row in connection.execute(query).mappings()
            }

    def _mark(self, checkpoint: str) -> bool:
        """Keep a checkpoint from being pruned; False if it just was."""
        checkpoints = tables.checkpoints
        wanted = checkpoints.update().where(checkpoints.c.name == checkpoint)
        with self._database.write() as connection:
            return connection.execute(wanted.values(asked_for=True)).rowcount > 0


def _model_of(names: _Names, root: str) -> Path | None:
    """The directory or file of a model other than the default one, by its name."""
    made = names.artifacts.get(root)
    if made is not None:
        return made.path if made.standalone and made.promoted and made.path.is_dir() else None
    return names.offered.get(root)


def _standalone(name: str, path: Path) -> ModelRef:
    return ModelRef(name, name, None, None, 0, path)
