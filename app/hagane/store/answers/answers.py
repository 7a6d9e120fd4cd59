"""Everything kept of answers, in a database of its own.

Writes of answers neither wait for those of jobs nor make the catalogue read its names again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hagane.store.answers.canaries import Canaries
from hagane.store.answers.completions import Completions
from hagane.store.answers.datasets import Datasets
from hagane.store.answers.evals import Evals
from hagane.store.answers.feedback import FeedbackLog
from hagane.store.answers.migrations import MIGRATIONS
from hagane.store.database import Database

ANSWERS_FILE = "answers.sqlite3"


@dataclass(frozen=True)
class Answers:
    """Stored completions and feedback, and what is made of them: data sets, canaries, evals."""

    database: Database
    completions: Completions
    feedback: FeedbackLog
    datasets: Datasets
    canaries: Canaries
    evals: Evals

    @classmethod
    def open(cls, directory: Path | None) -> Answers:
        """Open or create `answers.sqlite3` in `directory`; in memory for None."""
        database = Database(None if directory is None else directory / ANSWERS_FILE, MIGRATIONS)
        return cls(
            database,
            Completions(database),
            FeedbackLog(database),
            Datasets(database),
            Canaries(database),
            Evals(database),
        )
