"""The SQLite database: connections as they must be, and its schema brought up to date at start.

Write-ahead logging lets the server read while a worker writes; a transaction that writes takes the
write lock at its beginning, so that what it has read cannot change under it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from app.errors import ConfigurationError
from app.store.migrations import MIGRATIONS

_BUSY_SECONDS = 30.0


class Database:
    """Connections to one database file, or to one in memory when `path` is None.

    Raises ConfigurationError when the file cannot be used or is newer than this program.
    """

    def __init__(self, path: Path | None) -> None:
        if path is None:
            arguments: dict[str, Any] = {"poolclass": sa.StaticPool}
            connect: dict[str, Any] = {"check_same_thread": False}
        else:
            arguments, connect = {}, {"timeout": _BUSY_SECONDS}
        self._engine = sa.create_engine(
            f"sqlite:///{'' if path is None else path}", connect_args=connect, **arguments
        )
        sa.event.listen(self._engine, "connect", _configure)
        sa.event.listen(self._engine, "begin", _begin)
        self._writing = self._engine.execution_options(begin="IMMEDIATE")
        try:
            self._migrate()
        except sa.exc.DBAPIError as error:
            raise ConfigurationError(f"the database {path} cannot be used: {error.orig}") from None

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """One consistent view."""
        with self._engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """All or nothing, durable at the end, one writer at a time."""
        with self._writing.begin() as connection:
            yield connection

    def close(self) -> None:
        """Give all connections back."""
        self._engine.dispose()

    def _migrate(self) -> None:
        with self.write() as connection:
            version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
            if version > len(MIGRATIONS):
                raise ConfigurationError(
                    f"the database {self._engine.url.database} has schema {version}; this program "
                    f"knows up to {len(MIGRATIONS)}: start the newer version that wrote it"
                )
            for step in MIGRATIONS[version:]:
                for statement in step:
                    connection.exec_driver_sql(statement)
            connection.exec_driver_sql(f"PRAGMA user_version = {len(MIGRATIONS)}")


def _configure(connection: Any, _: object) -> None:
    # The driver would begin transactions by its own rules; `_begin` does it instead.
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin(connection: sa.Connection) -> None:
    kind = connection.get_execution_options().get("begin", "DEFERRED")
    connection.exec_driver_sql(f"BEGIN {kind}")
