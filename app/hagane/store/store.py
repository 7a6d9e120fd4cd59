"""The store: everything durable of a server, or of several that share it."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hagane.store.adapters import CACHE_FOLDER, SharedAdapters
from hagane.store.aliases import Aliases
from hagane.store.answers.answers import Answers
from hagane.store.answers.migrations import MIGRATIONS as ANSWERS
from hagane.store.artifacts import Artifacts
from hagane.store.batches import Batches
from hagane.store.database import Database
from hagane.store.files import Files
from hagane.store.jobs import Jobs
from hagane.store.keys import ApiKeys
from hagane.store.migrations import MIGRATIONS
from hagane.store.place import named_place
from hagane.store.published import PublishedModels
from hagane.store.responses import DEFAULT_RETENTION, Responses, Retention
from hagane.store.sqlite import SqliteDatabase
from hagane.system.errors import ConfigurationError
from hagane.text.hub import MODELS_FOLDER

if TYPE_CHECKING:
    from hagane.store.blobs import Blobs

DATABASE_FILE = "hagane.sqlite3"
ANSWERS_FILE = "answers.sqlite3"
DATABASE_VARIABLE = "HAGANE_DATABASE_URL"
BLOBS_VARIABLE = "HAGANE_BLOB_URL"


@dataclass(frozen=True)
class StoreAddress:
    """Where a store is: a data directory; where it is shared, a PostgreSQL database and objects.

    `environment` brings the parts that may hold a password to a process of the store's own.
    """

    directory: Path
    database_url: str | None = field(default=None, repr=False)
    blob_url: str | None = field(default=None, repr=False)

    @property
    def environment(self) -> dict[str, str]:
        """Variables from which `in_process` of another process makes the same address."""
        named = {DATABASE_VARIABLE: self.database_url, BLOBS_VARIABLE: self.blob_url}
        return {name: value for name, value in named.items() if value is not None}

    @classmethod
    def in_process(cls, directory: Path, environment: Mapping[str, str]) -> StoreAddress:
        """The address of the store that the server of this process has."""
        return cls(directory, environment.get(DATABASE_VARIABLE), environment.get(BLOBS_VARIABLE))

    def databases(self) -> tuple[Database, Database]:
        """That of jobs and names, and that of answers. Raises ConfigurationError."""
        if self.database_url is None:
            return (
                SqliteDatabase(self.directory / DATABASE_FILE, MIGRATIONS),
                SqliteDatabase(self.directory / ANSWERS_FILE, ANSWERS),
            )
        # Half a megabyte and a driver that a server with a database of its own does without.
        from hagane.store.postgres import PostgresConnections, PostgresDatabase

        connections = PostgresConnections(self.database_url)
        return (
            PostgresDatabase(connections, "jobs", MIGRATIONS),
            PostgresDatabase(connections, "answers", ANSWERS),
        )


@dataclass(frozen=True)
class Store:
    """Two databases, and a data directory with `files/` and a folder for each job in `jobs/`.

    `address` is None for a store in memory, which has no directory. `adapters` are those that
    servers share as objects in `blobs`, None where they stay in the directories that they are in.
    """

    address: StoreAddress | None
    database: Database
    files: Files
    jobs: Jobs
    aliases: Aliases
    artifacts: Artifacts
    published: PublishedModels
    responses: Responses
    batches: Batches
    keys: ApiKeys
    answers: Answers
    adapters: SharedAdapters | None
    blobs: Blobs | None = None

    @classmethod
    def open(cls, place: Path | StoreAddress, retention: Retention = DEFAULT_RETENTION) -> Store:
        """Open or create a store.

        Raises ConfigurationError if the directory is not writable or the database not usable.
        """
        address = StoreAddress(place) if isinstance(place, Path) else place
        address = replace(address, directory=address.directory.absolute())
        try:
            for folder in ("files", "jobs"):
                (address.directory / folder).mkdir(parents=True, exist_ok=True)
            shared = address.database_url is not None
            name = named_place(address.directory) if shared else None
        except OSError as error:
            raise ConfigurationError(
                f"data_dir {address.directory} cannot be used: {error.strerror}"
            ) from None
        store = cls._of(address, address.databases(), retention, name)
        store.files.sweep()
        return store

    @classmethod
    def empty(cls, retention: Retention = DEFAULT_RETENTION) -> Store:
        """Create an empty store in memory, for a server that keeps nothing."""
        databases = SqliteDatabase(None, MIGRATIONS), SqliteDatabase(None, ANSWERS)
        return cls._of(None, databases, retention)

    @classmethod
    def _of(
        cls,
        address: StoreAddress | None,
        databases: tuple[Database, Database],
        retention: Retention,
        place: str | None = None,
    ) -> Store:
        database, answers = databases
        directory = Path() if address is None else address.directory
        # Made for the first file of a store in memory, removed by `clear`.
        scratch = Path(tempfile.gettempdir()) / f"hagane-{secrets.token_hex(8)}"
        blobs = None
        if address is not None and address.blob_url is not None:
            # With a client of an object store: megabytes.
            from hagane.store.blobs import Blobs

            blobs = Blobs(address.blob_url)
            blobs.probe()
        return cls(
            address,
            database,
            Files(database, (scratch if address is None else directory) / "files", blobs),
            Jobs(database, place),
            Aliases(database),
            Artifacts(database),
            PublishedModels(directory / MODELS_FOLDER),
            Responses(database, retention),
            Batches(database),
            ApiKeys(database),
            Answers.over(answers),
            None if blobs is None else SharedAdapters(blobs, directory / CACHE_FOLDER),
            blobs,
        )

    @property
    def durable(self) -> bool:
        """Whether it keeps anything beyond this process."""
        return self.address is not None

    @property
    def directory(self) -> Path:
        """The data directory, which only a durable store has."""
        return Path() if self.address is None else self.address.directory

    @property
    def environment(self) -> dict[str, str]:
        """As that of the address, for processes that open the same store."""
        return {} if self.address is None else self.address.environment

    def job_directory(self, job_id: str) -> Path:
        """The folder that the job writes to."""
        return self.directory / "jobs" / job_id

    def forget_adapters(self, digests: Collection[str]) -> None:
        """Remove the shared adapters among `digests` that no name stands for any more."""
        if self.adapters is not None:
            for digest in {digest for digest in digests if digest}:
                with self.adapters.kept(self.database, digest):
                    if self.artifacts.unused([digest]):
                        self.adapters.delete(digest)

    def sharing(self, directory: Path, digest: str) -> AbstractContextManager[None]:
        """As `SharedAdapters.shared`, where adapters are shared and `digest` is that of one."""
        if self.adapters is None or not digest:
            return nullcontext()
        return self.adapters.shared(self.database, directory, digest)

    @property
    def work_directory(self) -> Path:
        """The data directory, or that of the files of a store in memory."""
        return self.files.folder.parent

    def clear(self) -> None:
        """Remove the files of a store in memory."""
        if not self.durable:
            shutil.rmtree(self.work_directory, ignore_errors=True)

    def close(self) -> None:
        """Give all connections back."""
        self.database.close()
        self.answers.database.close()
