"""Batches of requests: their input, their progress, and the files of their results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from hagane.store import tables
from hagane.store.database import Database, claim
from hagane.store.paging import Page, Paging, select_page, without_sequence
from hagane.system.errors import NotFoundError

_batches = tables.batches
UNFINISHED = ("validating", "in_progress", "finalizing", "cancelling")


@dataclass(frozen=True)
class StoredBatch:
    """One batch. `moments` are the times, by name, at which its status changed, such as
    `in_progress_at`; `counts` has `total`, `completed` and `failed` requests. `server` is the one
    of several servers that works on it.
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


class Batches:
    """The batches of one data directory."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, batch: StoredBatch) -> None:
        """Raises DiskFullError."""
        with self._database.write() as connection:
            connection.execute(_batches.insert().values(**vars(batch)))

    def get(self, batch_id: str) -> StoredBatch:
        """Raises NotFoundError."""
        with self._database.read() as connection:
            return _get(connection, batch_id)

    def list(self, paging: Paging) -> Page[StoredBatch]:
        """A page of batches. Raises InvalidRequestError as paging does."""
        with self._database.read() as connection:
            return select_page(connection, _batches, paging, lambda row: StoredBatch(**row))

    def next(self) -> StoredBatch | None:
        """The oldest batch that is not finished; no other server works on it."""
        row = claim(self._database, _batches, _batches.c.status.in_(UNFINISHED))
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
        raise NotFoundError(f"There is no batch '{batch_id}'.", param="batch_id")
    return StoredBatch(**without_sequence(row))
