"""A PostgreSQL server of the tests' own, in a temporary directory, started by nobody's hand."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

# Nothing here has to survive a crash of the machine; one of the server, it does.
_OPTIONS = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "16MB",
    "max_connections": "60",
    "autovacuum": "off",
}
_USERS = ("postgres", "nobody")


def missing() -> str | None:
    """Why no PostgreSQL can be started or reached here; None where one can."""
    if importlib.util.find_spec("psycopg") is None:
        return "needs psycopg: pip install 'hagane[postgres]'"
    return "needs the programs of PostgreSQL (initdb, postgres)" if _programs() is None else None


def _programs() -> Path | None:
    """The folder of `initdb` and `postgres`: of the path, of Debian's packages, or of pgserver."""
    folders = [Path(found).resolve().parent for found in [shutil.which("initdb")] if found]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if (pgserver := importlib.util.find_spec("pgserver")) is not None and pgserver.origin:
        folders.append(Path(pgserver.origin).parent / "pginstall" / "bin")
    return next((f for f in folders if (f / "initdb").exists() and (f / "postgres").exists()), None)


@dataclass
class Postgres:
    """One server. `url()` is a schema of its own, so that tests share nothing."""

    directory: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    _user: dict[str, int] = field(default_factory=dict)

    @classmethod
    def create(cls) -> Postgres:
        directory = Path(tempfile.mkdtemp(prefix="hagane-pg-"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            made = cls(directory, probe.getsockname()[1])
        if os.geteuid() == 0:
            # The server refuses to run as root.
            entry = next(pwd.getpwnam(user) for user in _USERS if _known(user))
            made._user = {"user": entry.pw_uid, "group": entry.pw_gid}
            os.chown(directory, entry.pw_uid, entry.pw_gid)
        made._run("initdb", "-D", str(directory / "data"), "-U", "hagane", "-A", "trust", "-N")
        made.start()
        made.execute("CREATE DATABASE hagane", database="postgres")
        return made

    def start(self) -> None:
        """Start, and wait until connections are taken."""
        settings = [f"-c{name}={value}" for name, value in _OPTIONS.items()]
        self.process = subprocess.Popen(
            [self._program("postgres"), "-D", self.directory / "data", "-h", "127.0.0.1",
             "-p", str(self.port), "-k", self.directory, *settings],
            stdout=subprocess.DEVNULL, stderr=(self.directory / "log").open("ab"), **self._user,
        )  # fmt: skip
        import psycopg

        deadline = time.monotonic() + 30
        while True:
            try:
                self.execute("SELECT 1", database="postgres")
                return
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, (self.directory / "log").read_text()
                time.sleep(0.05)

    def kill(self) -> None:
        """End it as a crash does."""
        assert self.process is not None
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)],
            capture_output=True, text=True, check=False,
        ).stdout.split()  # fmt: skip
        for pid in (self.process.pid, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        self.process.wait()

    def remove(self) -> None:
        """End it, and remove all that it has kept."""
        assert self.process is not None
        # SIGINT: without waiting for those who are connected.
        self.process.send_signal(2)
        self.process.wait(20)
        shutil.rmtree(self.directory, ignore_errors=True)

    def execute(self, statement: str, database: str = "hagane") -> None:
        import psycopg

        with psycopg.connect(self._address(database), autocommit=True) as connection:
            connection.execute(statement)

    def url(self) -> str:
        """The address of an empty schema."""
        name = f"t{uuid.uuid4().hex[:12]}"
        self.execute(f"CREATE SCHEMA {name}")
        return f"{self._address('hagane')}?options={quote(f'-csearch_path={name}')}"

    def _address(self, database: str) -> str:
        return f"postgresql://hagane:secret@127.0.0.1:{self.port}/{database}"

    def _program(self, name: str) -> Path:
        folder = _programs()
        assert folder is not None
        return folder / name

    def _run(self, name: str, *arguments: str) -> None:
        # Where the user has no right to be, some programs cannot start.
        done = subprocess.run(
            [self._program(name), *arguments],
            capture_output=True, text=True, cwd=self.directory, check=False, **self._user,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def _known(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True
