"""Conversations of the chat page: documents that only their owner's key reaches.

Each has a revision, which every change counts up: a page that writes names the one it has seen, so
that none overwrites what it does not know. What is deleted leaves a mark, from which a page knows
that it was not just forgotten.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import sqlalchemy as sa

from hagane.store.answers import tables
from hagane.store.database import Database
from hagane.system.errors import ConflictError, NotFoundError, TooLargeError

_chats = tables.chats
# Of each owner, and as many marks of deleted ones.
MOST_CHATS = 10_000


@dataclass(frozen=True)
class ChatEntry:
    """One conversation without its text. `updated_at` in Unix seconds, `size` in bytes."""

    id: str
    revision: int
    updated_at: float
    size: int
    deleted: bool


class Chats:
    """The conversations of all owners; an owner is the label of a key."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def list(self, owner: str, since: float) -> list[ChatEntry]:
        """Those changed since, latest first, with the marks of deleted ones."""
        query = _of(owner).where(_chats.c.updated_at >= since).order_by(_chats.c.updated_at.desc())
        with self._database.read() as connection:
            return [_entry(row) for row in connection.execute(query)]

    def get(self, owner: str, chat_id: str, since: float) -> tuple[ChatEntry, str]:
        """An entry and its document. Raises NotFoundError."""
        query = sa.select(_chats).where(_is(owner, chat_id), _chats.c.updated_at >= since)
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None or row.deleted:
            raise NotFoundError(f"There is no chat '{chat_id}'.", param="chat_id")
        return _entry(row), row.body

    def put(
        self, owner: str, chat_id: str, seen: int, body: str, *, most_bytes: int, since: float
    ) -> ChatEntry:
        """Store a document over the revision `seen`, 0 for a new one. What is older goes.

        Raises ConflictError for another revision, TooLargeError where the owner has no room.
        """
        size = len(body.encode())
        with self._database.write() as connection:
            _expire(connection, since)
            entries = [_entry(row) for row in connection.execute(_of(owner))]
            before = next((entry for entry in entries if entry.id == chat_id), None)
            revision = before.revision if before else 0
            if revision != seen:
                raise ConflictError(
                    f"The chat '{chat_id}' has revision {revision}, not {seen}: somebody else "
                    "changed it. Read it again.",
                    param="revision",
                )
            _require_room([e for e in entries if e.id != chat_id], size, most_bytes)
            return _write(connection, owner, ChatEntry(chat_id, seen, 0.0, size, False), body)

    def delete(self, owner: str, chat_id: str) -> None:
        """Leave a mark in place of a conversation; the oldest marks go. Raises NotFoundError."""
        with self._database.write() as connection:
            row = connection.execute(_of(owner).where(_is(owner, chat_id))).one_or_none()
            if row is None or row.deleted:
                raise NotFoundError(f"There is no chat '{chat_id}'.", param="chat_id")
            _write(connection, owner, ChatEntry(chat_id, row.revision, 0.0, 0, True), "")
            marks = sa.and_(_chats.c.owner == owner, _chats.c.deleted)
            newest_first = sa.select(_chats.c.id).where(marks).order_by(_chats.c.updated_at.desc())
            beyond = _chats.c.id.in_(newest_first.offset(MOST_CHATS))
            connection.execute(_chats.delete().where(marks, beyond))

    def expire(self, since: float) -> None:
        """Delete what was last changed before."""
        with self._database.write() as connection:
            _expire(connection, since)


def _expire(connection: sa.Connection, since: float) -> None:
    connection.execute(_chats.delete().where(_chats.c.updated_at < since))


def _require_room(others: list[ChatEntry], size: int, most_bytes: int) -> None:
    """Raises TooLargeError unless `size` bytes more are allowed besides the owner's `others`."""
    total = sum(entry.size for entry in others) + size
    if total > most_bytes:
        raise TooLargeError(
            f"Chats of this key would take {total} bytes; stored_chats allows {most_bytes}. "
            "Delete old ones.",
            param="conversation",
        )
    if sum(not entry.deleted for entry in others) >= MOST_CHATS:
        raise TooLargeError(
            f"This key has {MOST_CHATS} chats, as many as may be. Delete old ones.",
            param="conversation",
        )


def _of(owner: str) -> sa.Select[tuple[str, int, float, int, bool]]:
    columns = _chats.c
    query = sa.select(
        columns.id, columns.revision, columns.updated_at, columns.bytes, columns.deleted
    )
    return query.where(columns.owner == owner)


def _is(owner: str, chat_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(_chats.c.owner == owner, _chats.c.id == chat_id)


def _entry(row: sa.Row[tuple[str, int, float, int, bool]]) -> ChatEntry:
    return ChatEntry(row.id, row.revision, row.updated_at, row.bytes, row.deleted)


def _write(connection: sa.Connection, owner: str, entry: ChatEntry, body: str) -> ChatEntry:
    """The entry with its next revision, now."""
    written = ChatEntry(entry.id, entry.revision + 1, time.time(), entry.size, entry.deleted)
    values = {"revision": written.revision, "updated_at": written.updated_at,
              "bytes": written.size, "deleted": written.deleted, "body": body}  # fmt: skip
    if entry.revision:
        connection.execute(_chats.update().where(_is(owner, entry.id)).values(**values))
    else:
        connection.execute(_chats.insert().values(owner=owner, id=entry.id, **values))
    return written
