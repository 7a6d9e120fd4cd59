"""From the name in a request to the weights that answer it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from hagane.store import tables
from hagane.store.adapters import Adapters, StoredAdapter
from hagane.store.aliases import Aliases
from hagane.store.database import Database
from hagane.system.errors import ConflictError


@dataclass(frozen=True)
class Served:
    """What answers to a name: the base model `root`, an adapter on it, or a whole model beside it.

    `id` is the model's own name, also when the request named an alias. `digest` is the adapter's
    content's, so that equal adapters are equal whatever they are called. A whole model has a
    `model_directory` instead; its `root` is what it was trained from.
    """

    id: str
    root: str
    adapter_directory: Path | None
    digest: str | None
    created: int
    model_directory: Path | None = None


class Catalogue:
    """Every name that a server of the base model `base` answers to, but the base model's own."""

    def __init__(self, database: Database, base: str) -> None:
        self._database = database
        self._base = base
        self._adapters = Adapters(database)
        self._aliases = Aliases(database)

    def resolve(self, name: str) -> Served | None:
        """An alias (drawing between target and candidate), a job's result, or its checkpoint.

        Adapters of other base models, what is not promoted, and what has lost its directory are
        not served: None. Whole models need no base: those of others are.
        """
        model = self._aliases.resolve(name) or name
        if model == self._base:
            return None if model == name else Served(model, model, None, None, 0)
        stored = self._adapters.find(model)
        if stored is not None:
            return self._served(stored)
        return self._checkpoint(model)

    def list(self) -> list[Served]:
        """What `/v1/models` adds to the base model: adapters, whole models and aliases, by age."""
        kept = [stored for stored in self._adapters.list() if stored.name != self._base]
        served = [found for stored in kept if (found := self._served(stored))]
        aliases = [
            Served(alias.name, alias.target or self._base, None, None, alias.created_at)
            for alias in self._aliases.current()
        ]
        return served + aliases

    def register(self, name: str, directory: Path, digest: str, *, replace: bool = False) -> Served:
        """Serve the adapter in `directory` under `name` from now on, also after a restart.

        Raises ConflictError if the name is taken, unless an adapter has it and `replace` is true.
        """
        taken = name == self._base or self._aliases.resolve(name) is not None
        before = self._adapters.find(name)
        if taken or (before is not None and (before.whole or not replace)):
            raise ConflictError(
                f"The name '{name}' is taken; choose another, or unload it first.",
                param="lora_name",
                code="name_taken",
            )
        stored = StoredAdapter(name, self._base, str(directory), digest)
        self._adapters.put(stored)
        return _as_served(stored)

    def _served(self, stored: StoredAdapter) -> Served | None:
        fits = stored.whole or stored.root == self._base
        return _as_served(stored) if stored.promoted and fits and stored.path.is_dir() else None

    def _checkpoint(self, name: str) -> Served | None:
        checkpoints, jobs = tables.checkpoints, tables.jobs
        query = (
            sa.select(checkpoints, jobs.c.model)
            .join(jobs, jobs.c.id == checkpoints.c.job)
            # Without a digest it is a whole model, which needs no base.
            .where(
                checkpoints.c.name == name,
                sa.or_(jobs.c.model == self._base, checkpoints.c.digest == ""),
            )
        )
        with self._database.read() as connection:
            row = connection.execute(query).mappings().one_or_none()
        if row is None or not Path(row["directory"]).is_dir() or not self._ask_for(row):
            return None
        kept = ("directory", "digest", "created_at")
        return _as_served(StoredAdapter(name, row["model"], **{key: row[key] for key in kept}))

    def _ask_for(self, checkpoint: sa.RowMapping) -> bool:
        """Keep a checkpoint from being pruned; False if it just was."""
        if checkpoint["asked_for"]:
            return True
        checkpoints = tables.checkpoints
        wanted = checkpoints.update().where(checkpoints.c.name == checkpoint["name"])
        with self._database.write() as connection:
            return connection.execute(wanted.values(asked_for=True)).rowcount > 0


def _as_served(stored: StoredAdapter) -> Served:
    if stored.whole:
        return Served(stored.name, stored.root, None, None, stored.created_at, stored.path)
    return Served(stored.name, stored.root, stored.path, stored.digest, stored.created_at)
