"""Everything kept of answers, in a database (or a part of the schema) of its own.

Writes of answers neither wait for those of jobs nor make the catalogue read its names again.
"""

from __future__ import annotations

from dataclasses import dataclass

from hagane.store.answers.canaries import Canaries
from hagane.store.answers.chats import Chats
from hagane.store.answers.completions import Completions
from hagane.store.answers.datasets import Datasets
from hagane.store.answers.evals import Evals
from hagane.store.answers.feedback import FeedbackLog
from hagane.store.database import Database


@dataclass(frozen=True)
class Answers:
    """Stored completions and feedback, and what is made of them: data sets, canaries, evals."""

    database: Database
    completions: Completions
    feedback: FeedbackLog
    datasets: Datasets
    canaries: Canaries
    evals: Evals
    chats: Chats

    @classmethod
    def over(cls, database: Database) -> Answers:
        """What `database` keeps, whose schema is that of `answers.migrations`."""
        return cls(
            database,
            Completions(database),
            FeedbackLog(database),
            Datasets(database),
            Canaries(database),
            Evals(database),
            Chats(database),
        )
