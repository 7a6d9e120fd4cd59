"""Batches of requests: their input, their progress, and the files of their results."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from hagane.store import tables
from hagane.store.database import Database, claim
from hagane.store.paging import Page, Paging, select_page, without_sequence
from hagane.system.errors import NotFoundError

_batches = tables.batches
# The owner of what comes with the admin key, or from jobs.
ADMINISTRATORS = ""
# Finished batches of an owner with bounds.
_KEPT_FINISHED = 1000
UNFINISHED = ("validating", "in_progress", "finalizing", "cancelling")


@dataclass(frozen=True)
class StoredBatch:
    """One batch. `moments` are the times, by name, at which its status changed, such as
    `in_progress_at`; `counts` has `total`, `completed` and `failed` requests. `server` is the one
    of several servers that works on it. `owner` is the label of the API key in whose name its
    requests are sent, or ADMINISTRATORS.
    """

    id: str
    created_at: int
    expires_at: int
    status: str
    endpoint: str
    input_file: str
    completion_window: str
    metadata: dict[str, str]
    moments: dict[str, int]
    counts: dict[str, int]
    errors: list[dict[str, Any]]
    output_file: str | None = None
    error_file: str | None = None
    server: str | None = None
    owner: str = ADMINISTRATORS


class Batches:
    """The batches of one data directory. Where an `owner` is given, others' do not exist."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, batch: StoredBatch, most: int | None = None) -> bool:
        """Queue a batch, unless its owner has `most` unfinished ones; whether it is queued.

        Of the owner's finished ones the oldest are forgotten where `most` is given. Raises
        DiskFullError.
        """
        own = _batches.c.owner == batch.owner
        with self._database.write() as connection:
            if most is not None:
                unfinished = sa.select(sa.func.count()).where(
                    own, _batches.c.status.in_(UNFINISHED)
                )
                if connection.execute(unfinished).scalar_one() >= most:
                    return False
                finished = sa.select(_batches.c.sequence).where(
                    own, _batches.c.status.not_in(UNFINISHED)
                )
                newest_first = finished.order_by(_batches.c.sequence.desc())
                oldest = connection.execute(newest_first.offset(_KEPT_FINISHED)).scalars().all()
                connection.execute(_batches.delete().where(_batches.c.sequence.in_(oldest)))
            connection.execute(_batches.insert().values(**vars(batch)))
        return True

    def get(self, batch_id: str, owner: str | None = None) -> StoredBatch:
        """Raises NotFoundError."""
        with self._database.read() as connection:
            found = _get(connection, batch_id)
        if owner not in (None, found.owner):
            raise _missing(batch_id)
        return found

    def list(self, paging: Paging, owner: str | None = None) -> Page[StoredBatch]:
        """A page of batches. Raises InvalidRequestError as paging does."""
        conditions = () if owner is None else (_batches.c.owner == owner,)
        with self._database.read() as connection:
            return select_page(
                connection, _batches, paging, lambda row: StoredBatch(**row), *conditions
            )

    def next(self, served: Collection[str] = ()) -> StoredBatch | None:
        """The oldest batch that is not finished, of an owner who is not among those `served`.

        No other server works on it.
        """
        waits = _batches.c.status.in_(UNFINISHED), _batches.c.owner.not_in(tuple(served))
        row = claim(self._database, _batches, *waits)
        return None if row is None else StoredBatch(**row)

    def is_held(self, batch_id: str) -> bool:
        """Whether the batch is still this server's."""
        query = sa.select(_batches.c.server).where(_batches.c.id == batch_id)
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return row is not None and row.server == self._database.server

    def move(
        self, batch_id: str, before: Sequence[str], after: str, now: int, **changes: Any
    ) -> bool:
        """Go from one of the statuses `before` to `after`; whether it was in one of them."""
        with self._database.write() as connection:
            found = _get(connection, batch_id)
            if found.status not in before:
                return False
            moments = found.moments
            if after != found.status:
                moments = {**moments, f"{after}_at": now}
            connection.execute(
                _batches.update()
                .where(_batches.c.id == batch_id)
                .values(status=after, moments=moments, **changes)
            )
            return True


def _get(connection: sa.Connection, batch_id: str) -> StoredBatch:
    row = (
        connection.execute(sa.select(_batches).where(_batches.c.id == batch_id))
        .mappings()
        .one_or_none()
    )
    if row is None:
        raise _missing(batch_id)
    return StoredBatch(**without_sequence(row))


def _missing(batch_id: str) -> NotFoundError:
    return NotFoundError(f"There is no batch '{batch_id}'.", param="batch_id")
