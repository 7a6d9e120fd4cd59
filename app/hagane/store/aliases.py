"""Aliases: names that point to a model, or split requests between a model and a candidate.

Every change adds a generation, and none is ever edited. Of two changes that start from the same
generation the second fails (compare-and-swap). A rollback adds a generation with an older one's
content.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field, replace
from typing import Literal

import sqlalchemy as sa

from hagane.store import tables
from hagane.store.database import Database
from hagane.system.errors import ConflictError, NotFoundError

_generations = tables.alias_generations

Arm = Literal["target", "candidate"]


@dataclass(frozen=True)
class AliasGeneration:
    """One state of an alias: `percentage` of requests go to `candidate`, the rest to `target`.

    A `target` of None marks a deleted alias; its history stays.
    """

    name: str
    target: str | None
    candidate: str | None = None
    percentage: float = 0.0
    generation: int = 0
    created_at: int = field(default_factory=lambda: int(time.time()))

    def choose(self, percentile: float) -> Arm:
        """The side for a request whose random number is `percentile`, in [0, 100)."""
        return "candidate" if self.candidate and percentile < self.percentage else "target"

    def model(self, arm: Arm) -> str | None:
        """The model on one side."""
        return self.candidate if arm == "candidate" else self.target


class Aliases:
    """All aliases of one data directory."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def resolve(self, name: str) -> str | None:
        """The model that a request for `name` goes to, or None if there is no such alias."""
        with self._database.read() as connection:
            found = _latest(connection, name)
        return None if found is None else found.model(found.choose(random.uniform(0, 100)))  # noqa: S311

    def get(self, name: str) -> AliasGeneration:
        """The current generation. Raises NotFoundError."""
        with self._database.read() as connection:
            return _existing(connection, name)

    def current(self) -> list[AliasGeneration]:
        """The current generations of all aliases, sorted by name."""
        latest = sa.select(_generations.c.name, sa.func.max(_generations.c.generation))
        query = sa.select(_generations).where(
            sa.tuple_(_generations.c.name, _generations.c.generation).in_(
                latest.group_by(_generations.c.name)
            ),
            _generations.c.target.is_not(None),
        )
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(_generations.c.name)).mappings()
            return [AliasGeneration(**row) for row in rows]

    def history(self, name: str) -> list[AliasGeneration]:
        """All generations, newest first. Raises NotFoundError."""
        query = sa.select(_generations).where(_generations.c.name == name)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(_generations.c.generation.desc())).mappings()
            history = [AliasGeneration(**row) for row in rows]
        if not history:
            raise _not_found(name)
        return history

    def set(self, wanted: AliasGeneration, expected: int | None = None) -> AliasGeneration:
        """Point `wanted.name` elsewhere; returns the new current generation.

        `expected` is the generation that the caller has seen, 0 for an alias that does not exist
        yet. Raises ConflictError if another one is current.
        """
        with self._database.write() as connection:
            return _append(connection, wanted, expected)

    def rollback(
        self, name: str, generation: int | None = None, expected: int | None = None
    ) -> AliasGeneration:
        """Restore the content of `generation`; None means the one before the current one.

        Raises NotFoundError for an unknown generation, ConflictError as `set` does.
        """
        with self._database.write() as connection:
            wanted = generation or _existing(connection, name).generation - 1
            query = sa.select(_generations).where(
                _generations.c.name == name, _generations.c.generation == wanted
            )
            row = connection.execute(query).mappings().one_or_none()
            if row is None or row["target"] is None:
                raise NotFoundError(
                    f"The alias '{name}' has no generation {wanted} that points to a model.",
                    param="generation",
                )
            old = AliasGeneration(**row)
            return _append(connection, replace(old, created_at=int(time.time())), expected)

    def delete(self, name: str) -> None:
        """Delete the alias; its history stays. Raises NotFoundError."""
        with self._database.write() as connection:
            _existing(connection, name)
            _append(connection, AliasGeneration(name, None), None)


def _append(
    connection: sa.Connection, wanted: AliasGeneration, expected: int | None
) -> AliasGeneration:
    query = sa.select(sa.func.max(_generations.c.generation))
    last = connection.execute(query.where(_generations.c.name == wanted.name)).scalar() or 0
    alive = _latest(connection, wanted.name) is not None
    if expected is not None and expected not in ((last,) if alive else (0, last)):
        raise ConflictError(
            f"The alias '{wanted.name}' is at generation {last if alive else 0}, not {expected}: "
            "it has changed meanwhile. Read it again before you change it.",
            param="expected_generation",
            code="generation_mismatch",
        )
    added = replace(wanted, generation=last + 1)
    connection.execute(_generations.insert().values(**vars(added)))
    return added


def _latest(connection: sa.Connection, name: str) -> AliasGeneration | None:
    query = sa.select(_generations).where(_generations.c.name == name)
    query = query.order_by(_generations.c.generation.desc()).limit(1)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None or row["target"] is None else AliasGeneration(**row)


def _existing(connection: sa.Connection, name: str) -> AliasGeneration:
    found = _latest(connection, name)
    if found is None:
        raise _not_found(name)
    return found


def _not_found(name: str) -> NotFoundError:
    return NotFoundError(f"There is no alias '{name}'.", param="name")
