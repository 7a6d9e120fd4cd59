"""The store: everything durable of one data directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hagane.store.aliases import Aliases
from hagane.store.answers.answers import Answers
from hagane.store.artifacts import Artifacts
from hagane.store.batches import Batches
from hagane.store.database import Database
from hagane.store.files import Files
from hagane.store.jobs import Jobs
from hagane.store.keys import ApiKeys
from hagane.store.published import PublishedModels
from hagane.store.responses import DEFAULT_RETENTION, Responses, Retention
from hagane.system.errors import ConfigurationError
from hagane.text.hub import MODELS_FOLDER

DATABASE_FILE = "hagane.sqlite3"


@dataclass(frozen=True)
class Store:
    """A data directory: two databases, `files/`, and a folder for each job in `jobs/`.

    `durable` is False for a store in memory, which has no directory.
    """

    directory: Path
    durable: bool
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

    @classmethod
    def open(cls, directory: Path, retention: Retention = DEFAULT_RETENTION) -> Store:
        """Open or create a store. Raises ConfigurationError if `directory` is not writable."""
        directory = directory.absolute()
        try:
            for folder in ("files", "jobs"):
                (directory / folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"data_dir {directory} cannot be used: {error.strerror}"
            ) from None
        database = Database(directory / DATABASE_FILE)
        store = cls._of(directory, database, retention, durable=True)
        store.files.sweep()
        return store

    @classmethod
    def empty(cls, retention: Retention = DEFAULT_RETENTION) -> Store:
        """Create an empty store in memory, for a server that keeps nothing."""
        return cls._of(Path(), Database(None), retention, durable=False)

    @classmethod
    def _of(
        cls, directory: Path, database: Database, retention: Retention, *, durable: bool
    ) -> Store:
        return cls(
            directory,
            durable,
            database,
            Files(database, directory / "files"),
            Jobs(database),
            Aliases(database),
            Artifacts(database),
            PublishedModels(directory / MODELS_FOLDER),
            Responses(database, retention),
            Batches(database),
            ApiKeys(database),
            Answers.open(directory if durable else None),
        )

    def job_directory(self, job_id: str) -> Path:
        """The folder that the job writes to."""
        return self.directory / "jobs" / job_id
