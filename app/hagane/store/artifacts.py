"""Models served besides the default one: adapters, and standalone models made by jobs."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

from hagane.store import tables
from hagane.store.database import Database
from hagane.system.errors import ConflictError, ModelNotFoundError

_adapters, _generations = tables.adapters, tables.alias_generations


@dataclass(frozen=True)
class ServedArtifact:
    """An adapter for the base model `root`, or a standalone model; served once it is promoted.

    `digest` is the hash of an adapter's content (`adapter_digest`), and empty for a standalone
    model, whose `root` is the model that it was trained from, or itself. `job` is the job that
    made it.
    """

    name: str
    root: str
    directory: str
    digest: str
    promoted: bool = True
    job: str | None = None
    created_at: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def pretrained(cls, job: str, name: str, directory: Path) -> ServedArtifact:
        """A model that `job` pretrained; it has no base."""
        return cls(name, name, str(directory), digest="", job=job)

    @property
    def path(self) -> Path:
        """The directory of the adapter or the model."""
        return Path(self.directory)

    @property
    def standalone(self) -> bool:
        """Whether it is a model with an engine of its own, rather than an adapter."""
        return not self.digest


class Artifacts:
    """All adapters and standalone models of one data directory."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, name: str) -> ServedArtifact | None:
        """The artifact `name`, promoted or not."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(_adapters).where(_adapters.c.name == name))
            found = row.mappings().one_or_none()
        return None if found is None else ServedArtifact(**found)

    def list(self) -> list[ServedArtifact]:
        """All, oldest first."""
        query = sa.select(_adapters).order_by(_adapters.c.created_at, _adapters.c.name)
        with self._database.read() as connection:
            return [ServedArtifact(**row) for row in connection.execute(query).mappings()]

    def unused(self, digests: Collection[str]) -> set[str]:
        """Those of `digests` that no adapter and no checkpoint has."""
        used: set[str] = set()
        with self._database.read() as connection:
            for column in (_adapters.c.digest, tables.checkpoints.c.digest):
                query = sa.select(column).where(column.in_(digests))
                used |= set(connection.execute(query).scalars())
        return set(digests) - used

    def put(self, artifact: ServedArtifact) -> None:
        """Add an artifact, or replace the one of the same name."""
        with self._database.write() as connection:
            put_artifact(connection, artifact)

    def promote(self, name: str) -> ServedArtifact:
        """Start to serve it, and name it as its job's result. Raises ModelNotFoundError."""
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
        return ServedArtifact(**found)

    def delete(self, name: str) -> ServedArtifact:
        """Remove it and its job's checkpoints; the caller removes its directory.

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
        return ServedArtifact(**found)


def put_artifact(connection: sa.Connection, artifact: ServedArtifact) -> None:
    """As `Artifacts.put`, within a transaction."""
    connection.execute(_adapters.delete().where(_adapters.c.name == artifact.name))
    connection.execute(_adapters.insert().values(**vars(artifact)))


def _not_found(name: str) -> ModelNotFoundError:
    return ModelNotFoundError(f"There is no adapter or trained model '{name}'.", param="model")
