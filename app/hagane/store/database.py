"""What the store needs of a database: transactions, a version, and claims on work that is queued.

`hagane.store.sqlite` keeps it in a file of one server; `hagane.store.postgres` shares it among
several. Everything else in this package is written against `Database` and runs on both.
"""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import sqlalchemy as sa

from hagane.store.paging import without_sequence
from hagane.system.errors import DiskFullError, StoreUnavailableError
from hagane.system.files import is_exhausted, is_full

# Primary codes of SQLite that say nothing about the statement or its values.
_UNUSABLE = {
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL,
}  # fmt: skip


class Database(ABC):
    """Connections to one database.

    Attributes:
        shared: whether other servers may work on the entries of this one.
        server: the id of this server among them, None where it is the only one.
        commits: transactions of this process that wrote, or of those the ones that changed a name
            or a key.
    """

    shared: bool = False
    server: str | None = None
    commits: int = 0

    @abstractmethod
    def read(self) -> AbstractContextManager[sa.Connection]:
        """One consistent view. Raises StoreUnavailableError."""

    @abstractmethod
    def write(self, *, turns: bool = True) -> AbstractContextManager[sa.Connection]:
        """All or nothing, durable at the end, one writer at a time.

        Without `turns` others may write meanwhile where the database can: for transactions whose
        statements depend on nothing that they have read. Raises DiskFullError,
        StoreUnavailableError, and InvalidRequestError for values that it cannot store.
        """

    @abstractmethod
    def version(self) -> tuple[int, int]:
        """A value that is another one after every transaction that changed a name or a key.

        `commits`, its first part, counts those of this process and is read without any waiting.
        """

    @abstractmethod
    def close(self) -> None:
        """Give all connections back."""

    def free(self, server: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
        """Whether an entry that belongs to `server` may be claimed: nobody else works on it."""
        return sa.true()

    def attempt(self, what: str) -> AbstractContextManager[bool]:
        """Whether no other server does `what` as long as the context is open; never waits."""
        return nullcontext(True)

    def exclusive(self, what: str) -> AbstractContextManager[None]:
        """No other server does `what` as long as the context is open; waits for its turn.

        Raises StoreUnavailableError. Not for long: a connection stands open meanwhile.
        """
        return nullcontext()

    def beat(self) -> None:
        """Show the other servers that this one lives. Raises StoreUnavailableError."""
        return

    def leave(self) -> None:
        """Give up all that this server has claimed, as its last act."""
        return


def claim(
    database: Database, table: sa.Table, *conditions: sa.ColumnElement[bool]
) -> dict[str, Any] | None:
    """The oldest entry that nobody else works on; it belongs to this server from now on."""
    query = sa.select(table).where(*conditions, database.free(table.c.server))
    query = query.order_by(table.c.sequence).limit(1)
    with database.read() as connection:
        row = connection.execute(query).mappings().one_or_none()
    if row is None or row["server"] == database.server:
        return None if row is None else without_sequence(row)
    with database.write(turns=False) as connection:
        # Rows that others are claiming right now are passed over, not waited for.
        row = connection.execute(query.with_for_update(skip_locked=True)).mappings().one_or_none()
        if row is None:
            return None
        mine = table.update().where(table.c.sequence == row["sequence"])
        connection.execute(mine.values(server=database.server))
    return without_sequence(row) | {"server": database.server}


def strikes_all(error: BaseException) -> bool:
    """Whether other work would fail as well now: the entry at hand is not to blame."""
    if isinstance(error, DiskFullError | StoreUnavailableError):
        return True
    return is_full(error) or is_exhausted(error) or is_unusable(error)


def is_unusable(error: BaseException) -> bool:
    """Whether an error of SQLite is about the database as a whole, which may be usable later."""
    code = getattr(getattr(error, "orig", None), "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _UNUSABLE
