"""Stored responses and conversations: bounded in bytes and in time, the oldest go first.

Bodies and items are JSON text that is not looked into here. Every entry belongs to an `owner`, the
label of an API key, and nobody else finds it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from hagane.store import tables
from hagane.store.database import Database
from hagane.store.paging import Page, Paging, select_page, without_sequence
from hagane.system.errors import InvalidRequestError, NotFoundError

_responses, _conversations, _items = tables.responses, tables.conversations, tables.items
_TRIM_SECONDS = 60.0
# Responses that a chain of previous ones may have.
_LONGEST_CHAIN = 1000
# What a conversation takes besides its metadata and items.
_CONVERSATION_BYTES = 256
UNFINISHED = ("queued", "in_progress")
_ANSWERED = ("completed", "incomplete")


@dataclass(frozen=True)
class Retention:
    """How much is kept, bytes, and for how long, seconds."""

    most_bytes: int = 256 << 20
    seconds: float = 30 * 86400.0


DEFAULT_RETENTION = Retention()


@dataclass(frozen=True)
class StoredResponse:
    """A response; `body` is its JSON, `previous` the id of the one that it goes on from."""

    id: str
    owner: str
    created_at: int
    status: str
    previous: str | None
    conversation: str | None
    body: str


@dataclass(frozen=True)
class StoredConversation:
    """A conversation, whose items are listed apart."""

    id: str
    owner: str
    created_at: int
    metadata: dict[str, str]


@dataclass(frozen=True)
class StoredItem:
    """An item, as JSON."""

    id: str
    body: str


class Responses:
    """The responses and conversations of one data directory."""

    def __init__(self, database: Database, retention: Retention) -> None:
        self._database = database
        self._retention = retention
        self._lock = threading.Lock()
        # Of everything kept; estimated between two looks at all of it.
        self._bytes: int | None = None
        self._trimmed = 0.0

    def save(
        self,
        response: StoredResponse,
        inputs: Sequence[StoredItem] = (),
        outputs: Sequence[StoredItem] = (),
    ) -> None:
        """Keep a response, or a newer state of one; a finished one joins its conversation.

        Raises DiskFullError.
        """
        row = {**vars(response), "bytes": len(response.body.encode())}
        with self._database.write() as connection:
            self._trim(connection, row["bytes"])
            row["server"] = self._database.server
            row["expires_at"] = time.time() + self._retention.seconds
            connection.execute(_responses.delete().where(_responses.c.id == response.id))
            connection.execute(_responses.insert().values(**row))
            self._add_items(connection, inputs, response=response.id, output=False)
            self._add_items(connection, outputs, response=response.id, output=True)
            if response.conversation is not None and response.status in _ANSWERED:
                self._join(connection, response)

    def get(self, response_id: str, owner: str) -> StoredResponse:
        """Raises NotFoundError, for what has expired, too."""
        with self._database.read() as connection:
            return _response(connection, response_id, owner)

    def delete(self, response_id: str, owner: str) -> None:
        """Forget a response and its items. Raises NotFoundError."""
        with self._database.write() as connection:
            _response(connection, response_id, owner)
            _forget(connection, _responses, [response_id])

    def unfinished(self) -> list[StoredResponse]:
        """Those that were being made when a server ended.

        Among several servers, those of a server that is no longer seen.
        """
        own = _responses.c.server.is_distinct_from(self._database.server)
        query = sa.select(_responses).where(
            _responses.c.status.in_(UNFINISHED),
            self._database.free(_responses.c.server),
            *([own] if self._database.shared else []),
        )
        with self._database.read() as connection:
            return [_as_response(row) for row in connection.execute(query).mappings()]

    def inputs(self, response_id: str, owner: str, paging: Paging) -> Page[StoredItem]:
        """A page of what the response was given. Raises NotFoundError, and as paging does."""
        with self._database.read() as connection:
            _response(connection, response_id, owner)
            conditions = (_items.c.response == response_id, sa.not_(_items.c.output))
            return select_page(connection, _items, paging, _as_item, *conditions)

    def context(self, response_id: str, owner: str) -> list[str]:
        """The items of a response and of all that it goes on from, oldest first.

        Raises NotFoundError, and InvalidRequestError for a chain that is too long.
        """
        chain: list[str] = []
        following: str | None = response_id
        with self._database.read() as connection:
            while following is not None:
                found = _response(connection, following, owner)
                chain.append(found.id)
                following = found.previous
                if len(chain) > _LONGEST_CHAIN:
                    raise InvalidRequestError(
                        f"'previous_response_id' has more than {_LONGEST_CHAIN} responses before "
                        "it; send the conversation as 'input'.",
                        param="previous_response_id",
                    )
            bodies: list[str] = []
            for each in reversed(chain):
                bodies += _bodies(connection, _items.c.response == each)
            return bodies

    def item(self, item_id: str, owner: str) -> str:
        """An item of any response or conversation of the owner's, as JSON. Raises NotFoundError."""
        places = [
            sa.exists().where(table.c.id == place, _kept(table, owner))
            for table, place in (
                (_responses, _items.c.response),
                (_conversations, _items.c.conversation),
            )
        ]
        query = sa.select(_items.c.body).where(_items.c.id == item_id, sa.or_(*places))
        with self._database.read() as connection:
            body: str | None = connection.execute(query).scalars().first()
        if body is None:
            raise NotFoundError(f"There is no item '{item_id}'.", param="input")
        return body

    def create_conversation(
        self, conversation: StoredConversation, items: Sequence[StoredItem]
    ) -> None:
        """Raises DiskFullError."""
        with self._database.write() as connection:
            self._trim(connection, _conversation_bytes(conversation.metadata))
            expires = time.time() + self._retention.seconds
            connection.execute(
                _conversations.insert().values(**vars(conversation), expires_at=expires)
            )
            self._add_items(connection, items, conversation=conversation.id)

    def conversation(self, conversation_id: str, owner: str) -> StoredConversation:
        """Raises NotFoundError."""
        with self._database.read() as connection:
            return _conversation(connection, conversation_id, owner)

    def update_conversation(
        self, conversation_id: str, owner: str, metadata: dict[str, str]
    ) -> StoredConversation:
        """Raises NotFoundError."""
        with self._database.write() as connection:
            self._trim(connection, _conversation_bytes(metadata))
            _conversation(connection, conversation_id, owner)
            connection.execute(
                _conversations.update()
                .where(_conversations.c.id == conversation_id)
                .values(metadata=metadata)
            )
            return _conversation(connection, conversation_id, owner)

    def delete_conversation(self, conversation_id: str, owner: str) -> None:
        """Forget a conversation and its items. Raises NotFoundError."""
        with self._database.write() as connection:
            _conversation(connection, conversation_id, owner)
            _forget(connection, _conversations, [conversation_id])

    def add_items(self, conversation_id: str, owner: str, items: Sequence[StoredItem]) -> None:
        """Raises NotFoundError, DiskFullError."""
        with self._database.write() as connection:
            self._trim(connection, 0)
            _conversation(connection, conversation_id, owner)
            self._add_items(connection, items, conversation=conversation_id)

    def items(self, conversation_id: str, owner: str, paging: Paging) -> Page[StoredItem]:
        """A page of the conversation's items. Raises NotFoundError, and as paging does."""
        with self._database.read() as connection:
            _conversation(connection, conversation_id, owner)
            return select_page(
                connection, _items, paging, _as_item, _items.c.conversation == conversation_id
            )

    def conversation_context(self, conversation_id: str, owner: str) -> list[str]:
        """All items of a conversation, oldest first. Raises NotFoundError."""
        with self._database.read() as connection:
            _conversation(connection, conversation_id, owner)
            return _bodies(connection, _items.c.conversation == conversation_id)

    def conversation_item(self, conversation_id: str, item_id: str, owner: str) -> StoredItem:
        """Raises NotFoundError."""
        query = sa.select(_items).where(
            _items.c.conversation == conversation_id, _items.c.id == item_id
        )
        with self._database.read() as connection:
            _conversation(connection, conversation_id, owner)
            row = connection.execute(query).mappings().first()
        if row is None:
            raise NotFoundError(
                f"There is no item '{item_id}' in this conversation.", param="item_id"
            )
        return _as_item(without_sequence(row))

    def delete_item(self, conversation_id: str, item_id: str, owner: str) -> StoredConversation:
        """Raises NotFoundError."""
        self.conversation_item(conversation_id, item_id, owner)
        with self._database.write() as connection:
            connection.execute(
                _items.delete().where(
                    _items.c.conversation == conversation_id, _items.c.id == item_id
                )
            )
            return _conversation(connection, conversation_id, owner)

    def _join(self, connection: sa.Connection, response: StoredResponse) -> None:
        """Append what a response was given and answered to its conversation, if that is there."""
        conversation = response.conversation
        known = sa.select(_conversations.c.id).where(_conversations.c.id == conversation)
        if connection.execute(known).first() is None:
            return
        own = sa.select(_items).where(_items.c.response == response.id)
        rows = connection.execute(own.order_by(_items.c.sequence)).mappings()
        items = [StoredItem(row["id"], row["body"]) for row in rows]
        self._add_items(connection, items, conversation=conversation)

    def _add_items(
        self,
        connection: sa.Connection,
        items: Sequence[StoredItem],
        *,
        response: str | None = None,
        conversation: str | None = None,
        output: bool = False,
    ) -> None:
        place = {"response": response, "conversation": conversation, "output": output}
        rows = [{**vars(item), **place, "bytes": len(item.body.encode())} for item in items]
        if rows:
            connection.execute(_items.insert(), rows)
            with self._lock:
                self._bytes = (self._bytes or 0) + sum(int(str(row["bytes"])) for row in rows)

    def _trim(self, connection: sa.Connection, arriving: int) -> None:
        """Make room: forget what has expired, then the oldest, down to nine tenths of the bound."""
        now = time.time()
        with self._lock:
            due = self._bytes is None or now - self._trimmed > _TRIM_SECONDS
            self._bytes = (self._bytes or 0) + arriving
            if not due and self._bytes <= self._retention.most_bytes:
                return
            self._trimmed = now
        for table in (_responses, _conversations):
            expired = sa.select(table.c.id).where(table.c.expires_at < now)
            _forget(connection, table, list(connection.execute(expired).scalars()))
        total = _total(connection) + arriving
        target = (
            self._retention.most_bytes * 9 // 10 if total > self._retention.most_bytes else total
        )
        while total > target and _forget_oldest(connection):
            total = _total(connection) + arriving
        with self._lock:
            self._bytes = total


def _forget_oldest(connection: sa.Connection) -> bool:
    """Forget a tenth of the entries; whether there were any."""
    ages = sa.union_all(
        *(
            sa.select(table.c.id, table.c.created_at, sa.literal(table.name).label("kind"))
            for table in (_responses, _conversations)
        )
    ).subquery()
    count = connection.execute(sa.select(sa.func.count()).select_from(ages)).scalar_one()
    oldest = connection.execute(
        sa.select(ages.c.id, ages.c.kind).order_by(ages.c.created_at).limit(max(count // 10, 1))
    ).all()
    for table in (_responses, _conversations):
        _forget(connection, table, [row.id for row in oldest if row.kind == table.name])
    return bool(oldest)


def _forget(connection: sa.Connection, table: sa.Table, ids: Sequence[str]) -> None:
    """Delete responses or conversations, with their items."""
    column = _items.c.response if table is _responses else _items.c.conversation
    for start in range(0, len(ids), 500):
        some = ids[start : start + 500]
        connection.execute(_items.delete().where(column.in_(some)))
        connection.execute(table.delete().where(table.c.id.in_(some)))


def _total(connection: sa.Connection) -> int:
    sums = [
        connection.execute(sa.select(sa.func.coalesce(sa.func.sum(table.c.bytes), 0))).scalar_one()
        for table in (_responses, _items)
    ]
    metadata = sa.func.length(sa.cast(_conversations.c.metadata, sa.Text))
    rows = sa.func.coalesce(sa.func.sum(metadata + _CONVERSATION_BYTES), 0)
    return int(sum(sums)) + int(connection.execute(sa.select(rows)).scalar_one())


def _conversation_bytes(metadata: dict[str, str]) -> int:
    return _CONVERSATION_BYTES + len(json.dumps(metadata))


def _bodies(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> list[str]:
    query = sa.select(_items.c.body).where(condition).order_by(_items.c.sequence)
    return list(connection.execute(query).scalars())


def _response(connection: sa.Connection, response_id: str, owner: str) -> StoredResponse:
    row = _owned(connection, _responses, response_id, owner)
    if row is None:
        raise NotFoundError(
            f"There is no response '{response_id}' here; it was not stored, or has expired.",
            param="response_id",
        )
    return _as_response(row)


def _conversation(
    connection: sa.Connection, conversation_id: str, owner: str
) -> StoredConversation:
    row = _owned(connection, _conversations, conversation_id, owner)
    if row is None:
        raise NotFoundError(
            f"There is no conversation '{conversation_id}' here; it may have expired.",
            param="conversation_id",
        )
    known = {name: row[name] for name in StoredConversation.__dataclass_fields__}
    return StoredConversation(**known)


def _owned(
    connection: sa.Connection, table: sa.Table, entry: str, owner: str
) -> sa.RowMapping | None:
    query = sa.select(table).where(table.c.id == entry, _kept(table, owner))
    return connection.execute(query).mappings().one_or_none()


def _kept(table: sa.Table, owner: str) -> sa.ColumnElement[bool]:
    """Whether an entry is the owner's, and has not expired."""
    return sa.and_(table.c.owner == owner, table.c.expires_at >= time.time())


def _as_response(row: sa.RowMapping) -> StoredResponse:
    return StoredResponse(**{name: row[name] for name in StoredResponse.__dataclass_fields__})


def _as_item(row: dict[str, Any]) -> StoredItem:
    return StoredItem(row["id"], row["body"])
