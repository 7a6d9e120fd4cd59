"""What is kept to be served beside the base: adapters, and whole models that jobs made."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

from hagane.store import tables
from hagane.store.database import Database
from hagane.system.errors import ConflictError, ModelNotFoundError

_adapters, _generations = tables.adapters, tables.alias_generations


@dataclass(frozen=True)
class StoredAdapter:
    """One adapter for the base model `root`; only a promoted one is served.

    `digest` is its content's (`adapter_digest`), `job` the job that made it. Without a digest it is
    no adapter but a whole model, whose `root` is the one that it was trained from, or itself.
    """

    name: str
    root: str
    directory: str
    digest: str
    promoted: bool = True
    job: str | None = None
    created_at: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def pretrained(cls, job: str, name: str, directory: Path) -> StoredAdapter:
        """A model that `job` made from text: it has no base but itself."""
        return cls(name, name, str(directory), digest="", job=job)

    @property
    def path(self) -> Path:
        """The directory of the adapter or the model."""
        return Path(self.directory)

    @property
    def whole(self) -> bool:
        """Whether it stands on its own, and needs an engine of its own."""
        return not self.digest


class Adapters:
    """All adapters and whole models of one data directory."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, name: str) -> StoredAdapter | None:
        """The adapter `name`, promoted or not."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(_adapters).where(_adapters.c.name == name))
            found = row.mappings().one_or_none()
        return None if found is None else StoredAdapter(**found)

    def list(self) -> list[StoredAdapter]:
        """All, oldest first."""
        query = sa.select(_adapters).order_by(_adapters.c.created_at, _adapters.c.name)
        with self._database.read() as connection:
            return [StoredAdapter(**row) for row in connection.execute(query).mappings()]

    def put(self, adapter: StoredAdapter) -> None:
        """Add it, or put it in the place of the one of the same name."""
        with self._database.write() as connection:
            put_adapter(connection, adapter)

    def promote(self, name: str) -> StoredAdapter:
        """Let it be served; its job then names it as its result. Raises ModelNotFoundError."""
        with self._database.write() as connection:
            row = connection.execute(
                _adapters.update()
                .where(_adapters.c.name == name)
                .values(promoted=True)
                .returning(_adapters)
            )
            found = row.mappings().one_or_none()
            if found is None:
                raise _not_found(name)
            jobs = tables.jobs
            connection.execute(
                jobs.update().where(jobs.c.id == found["job"]).values(fine_tuned_model=name)
            )
        return StoredAdapter(**found)

    def delete(self, name: str) -> StoredAdapter:
        """Forget it, and its job's checkpoints; its directory is the caller's.

        Raises ModelNotFoundError, or ConflictError while an alias points to one of them.
        """
        latest = sa.select(_generations.c.name, sa.func.max(_generations.c.generation))
        in_force = sa.tuple_(_generations.c.name, _generations.c.generation).in_(
            latest.group_by(_generations.c.name)
        )
        points_here = [
            condition
            for model in (_generations.c.target, _generations.c.candidate)
            for condition in (model == name, model.startswith(f"{name}:ckpt-", autoescape=True))
        ]
        with self._database.write() as connection:
            user = connection.execute(
                sa.select(_generations.c.name).where(in_force, sa.or_(*points_here))
            ).scalar()
            if user is not None:
                raise ConflictError(
                    f"The alias '{user}' points to '{name}' or to a checkpoint of its job; point "
                    "it elsewhere first.",
                    param="model",
                    code="model_in_use",
                )
            row = connection.execute(
                _adapters.delete().where(_adapters.c.name == name).returning(_adapters)
            )
            found = row.mappings().one_or_none()
            if found is not None and found["job"] is not None:
                points = tables.checkpoints
                connection.execute(points.delete().where(points.c.job == found["job"]))
        if found is None:
            raise _not_found(name)
        return StoredAdapter(**found)


def put_adapter(connection: sa.Connection, adapter: StoredAdapter) -> None:
    """As `Adapters.put`, within a transaction."""
    connection.execute(_adapters.delete().where(_adapters.c.name == adapter.name))
    connection.execute(_adapters.insert().values(**vars(adapter)))


def _not_found(name: str) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"No adapter and no model made here is called '{name}'.", param="model"
    )
