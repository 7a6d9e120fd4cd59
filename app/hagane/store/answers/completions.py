"""Stored completions: answers that clients keep, bounded by bytes and by age.

Every operation takes the caller's `key`; None stands for the administrator, who sees all of them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from hagane.store.answers import tables
from hagane.store.database import Database
from hagane.store.paging import Page, Paging, select_page, without_sequence
from hagane.system.errors import NotFoundError

_completions, _feedback = tables.completions, tables.feedback

# Pruned to this part of the limit, so that not every later write prunes again.
_PRUNED_TO = 0.9
_DELETED_AT_A_TIME = 500


@dataclass(frozen=True)
class StoredCompletion:
    """One answer with the request that it answers.

    `key` is the label of the caller's API key, `model` the model that answered. Where the request
    named an alias, `alias` is that name and `arm` is "target" or "candidate". Requests of one
    `conversation` share this hash. `bytes` counts `request` and `response` as JSON.
    """

    id: str
    created_at: int
    key: str
    model: str
    conversation: str
    bytes: int
    request: dict[str, Any]
    response: dict[str, Any]
    user: str | None = None
    alias: str | None = None
    arm: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CompletionFilter:
    """Which completions are meant; None leaves a field open. Times are Unix seconds."""

    key: str | None = None
    user: str | None = None
    models: tuple[str, ...] | None = None
    aliases: tuple[str, ...] | None = None
    arms: tuple[str, ...] | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    created_after: int | None = None
    created_before: int | None = None

    def conditions(self) -> list[sa.ColumnElement[bool]]:
        """The same in SQL."""
        columns = _completions.c
        found: list[sa.ColumnElement[bool]] = [
            columns.metadata[name].as_string() == value for name, value in self.metadata.items()
        ]
        exact = ((columns.key, self.key), (columns.user, self.user))
        found += [column == value for column, value in exact if value is not None]
        several = (
            (columns.model, self.models),
            (columns.alias, self.aliases),
            (columns.arm, self.arms),
        )
        found += [column.in_(values) for column, values in several if values is not None]
        if self.created_after is not None:
            found.append(columns.created_at > self.created_after)
        if self.created_before is not None:
            found.append(columns.created_at < self.created_before)
        return found


@dataclass(frozen=True)
class StorageBounds:
    """How much is kept: `most_bytes` of completions, each for `seconds` at most."""

    most_bytes: int
    seconds: float


class Completions:
    """All stored completions of one data directory."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._bytes: int | None = None

    @property
    def bytes(self) -> int:
        """Bytes of all completions, as of the last write of this process."""
        if self._bytes is None:
            with self._database.read() as connection:
                self._bytes = _total(connection)
        return self._bytes

    def add(self, rows: Sequence[dict[str, Any]], bounds: StorageBounds) -> int:
        """Add completions, and delete the oldest beyond `bounds`; returns how many went.

        A row has the columns of the table; `request` and `response` are JSON text.
        """
        before = self.bytes
        with self._database.write() as connection:
            if rows:
                connection.execute(_completions.insert(), list(rows))
            now = before + sum(row["bytes"] for row in rows)
            deleted, freed = _prune(connection, now, bounds)
            self._bytes = max(now - freed, 0)
        return deleted

    def get(self, completion_id: str, key: str | None) -> StoredCompletion:
        """One completion. Raises NotFoundError, also for another key's."""
        with self._database.read() as connection:
            row = connection.execute(
                sa.select(_completions).where(*_own(completion_id, key))
            ).mappings()
            found = row.one_or_none()
        if found is None:
            raise _not_found(completion_id)
        return _completion(without_sequence(found))

    def list(self, paging: Paging, wanted: CompletionFilter) -> Page[StoredCompletion]:
        """A page of completions. Raises InvalidRequestError as paging does."""
        with self._database.read() as connection:
            return select_page(connection, _completions, paging, _completion, *wanted.conditions())

    def scan(self, wanted: CompletionFilter) -> Iterator[StoredCompletion]:
        """All completions that are meant, oldest first, a few in memory at a time."""
        last = 0
        while True:
            query = sa.select(_completions).where(
                _completions.c.sequence > last, *wanted.conditions()
            )
            with self._database.read() as connection:
                rows = (
                    connection.execute(
                        query.order_by(_completions.c.sequence).limit(_DELETED_AT_A_TIME)
                    )
                    .mappings()
                    .all()
                )
            if not rows:
                return
            last = rows[-1]["sequence"]
            yield from (_completion(without_sequence(row)) for row in rows)

    def update(
        self, completion_id: str, key: str | None, metadata: dict[str, str]
    ) -> StoredCompletion:
        """Replace the metadata. Raises NotFoundError."""
        with self._database.write() as connection:
            changed = connection.execute(
                _completions.update().where(*_own(completion_id, key)).values(metadata=metadata)
            )
            if not changed.rowcount:
                raise _not_found(completion_id)
        return self.get(completion_id, key)

    def delete(self, completion_id: str, key: str | None) -> None:
        """Delete a completion with the feedback on it. Raises NotFoundError."""
        with self._database.write() as connection:
            deleted = connection.execute(
                _completions.delete().where(*_own(completion_id, key))
            ).rowcount
            if not deleted:
                raise _not_found(completion_id)
            connection.execute(_feedback.delete().where(_feedback.c.completion == completion_id))
        self._bytes = None

    def delete_user(self, user: str, key: str | None) -> tuple[int, int]:
        """Delete what the end user `user` caused; returns the counts of completions and feedback.

        With a `key`, only what was stored under it.
        """
        counts = []
        with self._database.write() as connection:
            for table in (_completions, _feedback):
                own = [table.c.user == user, *([table.c.key == key] if key is not None else [])]
                counts.append(connection.execute(table.delete().where(*own)).rowcount)
        self._bytes = None
        return counts[0], counts[1]


def _own(completion_id: str, key: str | None) -> list[sa.ColumnElement[bool]]:
    own = [_completions.c.key == key] if key is not None else []
    return [_completions.c.id == completion_id, *own]


def _prune(connection: sa.Connection, total: int, bounds: StorageBounds) -> tuple[int, int]:
    """Delete what is too old or too much; returns how many completions and how many bytes."""
    columns = _completions.c
    deleted, freed = 0, 0
    oldest = int(time.time() - bounds.seconds)
    while True:
        query = sa.select(columns.id, columns.bytes, columns.created_at)
        rows = connection.execute(query.order_by(columns.sequence).limit(_DELETED_AT_A_TIME)).all()
        gone = []
        crowded = total - freed > bounds.most_bytes
        for row in rows:
            over = crowded and total - freed > bounds.most_bytes * _PRUNED_TO
            if row.created_at >= oldest and not over:
                break
            gone.append(row.id)
            freed += row.bytes
        if gone:
            connection.execute(_completions.delete().where(columns.id.in_(gone)))
            connection.execute(_feedback.delete().where(_feedback.c.completion.in_(gone)))
            deleted += len(gone)
        if len(gone) < _DELETED_AT_A_TIME:
            return deleted, freed


def _total(connection: sa.Connection) -> int:
    query = sa.select(sa.func.coalesce(sa.func.sum(_completions.c.bytes), 0))
    total: int = connection.execute(query).scalar_one()
    return total


def _completion(row: dict[str, Any]) -> StoredCompletion:
    texts = {name: json.loads(row[name]) for name in ("request", "response")}
    return StoredCompletion(**{**row, **texts})


def _not_found(completion_id: str) -> NotFoundError:
    return NotFoundError(
        f"There is no stored completion '{completion_id}'; only those asked for with "
        "'store': true are kept.",
        param="completion_id",
    )
