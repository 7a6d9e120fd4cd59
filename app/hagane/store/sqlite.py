"""The database as a SQLite file of one server, with its schema brought up to date at start.

Write-ahead logging lets the server read while a worker writes; a transaction that writes takes the
write lock at its beginning, so that what it has read cannot change under it.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from hagane.store.database import Database
from hagane.store.migrations import MIGRATIONS
from hagane.system.errors import ConfigurationError
from hagane.system.files import full

_BUSY_SECONDS = 30.0
# The latter where the index of the write-ahead log has to grow.
_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)


class SqliteDatabase(Database):
    """Connections to one database file, or to one in memory when `path` is None.

    `migrations` are the steps that make its schema, oldest first.

    Raises ConfigurationError when the file cannot be used or is newer than this program.
    """

    def __init__(self, path: Path | None, migrations: Sequence[Sequence[str]] = MIGRATIONS) -> None:
        self._migrations = migrations
        if path is None:
            arguments: dict[str, Any] = {"poolclass": sa.StaticPool}
            connect: dict[str, Any] = {"check_same_thread": False}
        else:
            arguments, connect = {}, {"timeout": _BUSY_SECONDS}
        # A database in memory is one connection, for one thread at a time.
        self._turn = threading.RLock() if path is None else nullcontext()
        self._engine = sa.create_engine(
            f"sqlite:///{'' if path is None else path}", connect_args=connect, **arguments
        )
        sa.event.listen(self._engine, "connect", _configure)
        sa.event.listen(self._engine, "begin", _begin)
        self._writing = self._engine.execution_options(begin="IMMEDIATE")
        self._watch: sqlite3.Connection | None = None
        self._watching = threading.Lock()
        try:
            self._migrate()
            if path is not None:
                self._watch = sqlite3.connect(path, check_same_thread=False)
        except sa.exc.DBAPIError as error:
            raise ConfigurationError(f"the database {path} cannot be used: {error.orig}") from None

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        with self._turn, self._engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self, *, turns: bool = True) -> Iterator[sa.Connection]:
        try:
            with self._turn, self._writing.begin() as connection:
                yield connection
        except sa.exc.OperationalError as error:
            if getattr(error.orig, "sqlite_errorcode", None) not in _FULL:
                raise
            raise full(Path(self._engine.url.database or "").parent) from error
        finally:
            self.commits += 1

    def version(self) -> tuple[int, int]:
        with self._watching:
            if self._watch is None:
                return self.commits, 0
            (changes,) = self._watch.execute("PRAGMA data_version").fetchone()
            return self.commits, changes

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
        self._engine.dispose()

    def _migrate(self) -> None:
        with self.read() as connection:
            if _version(connection) == len(self._migrations):
                # Nothing to write: a full disk does not keep a server or a worker from its start.
                return
        with self.write() as connection:
            version = _version(connection)
            if version > len(self._migrations):
                raise ConfigurationError(
                    f"the database {self._engine.url.database} has schema {version}; this program "
                    f"knows up to {len(self._migrations)}: start the newer version that wrote it"
                )
            for step in self._migrations[version:]:
                for statement in step:
                    connection.exec_driver_sql(statement)
            connection.exec_driver_sql(f"PRAGMA user_version = {len(self._migrations)}")


def _version(connection: sa.Connection) -> int:
    version: int = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    return version


def _configure(connection: Any, _: object) -> None:
    # The driver would begin transactions by its own rules; `_begin` does it instead.
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin(connection: sa.Connection) -> None:
    kind = connection.get_execution_options().get("begin", "DEFERRED")
    connection.exec_driver_sql(f"BEGIN {kind}")
