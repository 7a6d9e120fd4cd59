"""The database file: its schema, its transactions, what survives a crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest
import sqlalchemy as sa
from hagane.store import tables
from hagane.store.answers import tables as answer_tables
from hagane.store.answers.migrations import MIGRATIONS as ANSWERS
from hagane.store.migrations import MIGRATIONS
from hagane.store.sqlite import SqliteDatabase
from hagane.system.errors import ConfigurationError


@pytest.mark.parametrize(
    ("migrations", "metadata"),
    [(MIGRATIONS, tables.metadata), (ANSWERS, answer_tables.metadata)],
    ids=["jobs", "answers"],
)
def test_migrations_make_the_tables_that_queries_name(tmp_path, migrations, metadata):
    database = SqliteDatabase(tmp_path / "db", migrations)
    with database.read() as connection:
        inspector = sa.inspect(connection)
        made = set(inspector.get_table_names()) - {"sqlite_sequence"}
        assert made == set(metadata.tables)
        for name, table in metadata.tables.items():
            columns = {
                c["name"]: (str(c["type"]), c["nullable"]) for c in inspector.get_columns(name)
            }
            assert columns == {
                c.name: (c.type.compile(connection.dialect), bool(c.nullable) and not c.primary_key)
                if c.name != "sequence"
                else ("INTEGER", True)
                for c in table.columns
            }


def test_opening_again_changes_nothing(tmp_path):
    for _ in range(2):
        database = SqliteDatabase(tmp_path / "db")
        with database.read() as connection:
            version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
            mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()
            keys = connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one()
        assert (version, mode, keys) == (len(MIGRATIONS), "wal", 1)
        database.close()


def test_a_newer_schema_and_a_broken_file_are_refused(tmp_path):
    database = SqliteDatabase(tmp_path / "db")
    with database.write() as connection:
        connection.exec_driver_sql("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(ConfigurationError, match="schema 99"):
        SqliteDatabase(tmp_path / "db")
    (tmp_path / "broken").write_bytes(b"no database" * 1000)
    with pytest.raises(ConfigurationError, match="not a database"):
        SqliteDatabase(tmp_path / "broken")


def test_writers_take_turns(tmp_path):
    """Each reads a counter and writes it back; without the lock at the start, counts are lost."""
    database = SqliteDatabase(tmp_path / "db")
    with database.write() as connection:
        connection.exec_driver_sql("CREATE TABLE counter (n INTEGER)")
        connection.exec_driver_sql("INSERT INTO counter VALUES (0)")

    def count() -> None:
        for _ in range(10):
            with database.write() as connection:
                n = connection.exec_driver_sql("SELECT n FROM counter").scalar_one()
                connection.exec_driver_sql("UPDATE counter SET n = ?", (n + 1,))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as connection:
        assert connection.exec_driver_sql("SELECT n FROM counter").scalar_one() == 40


def test_what_a_killed_process_committed_is_there_and_the_rest_is_not(tmp_path):
    code = """
import sys
from pathlib import Path
from hagane.store.sqlite import SqliteDatabase
database = SqliteDatabase(Path(sys.argv[1]))
with database.write() as connection:
    connection.exec_driver_sql("CREATE TABLE t (n INTEGER)")
    connection.exec_driver_sql("INSERT INTO t VALUES (1)")
with database.write() as connection:
    connection.exec_driver_sql("INSERT INTO t VALUES (2)")
    print("ready", flush=True)
    sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "db"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"ready\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with SqliteDatabase(tmp_path / "db").read() as connection:
        assert connection.exec_driver_sql("SELECT n FROM t").scalars().all() == [1]
