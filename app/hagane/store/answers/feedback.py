"""Feedback on answers: one judgement by each author of each choice of a completion."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import sqlalchemy as sa

from hagane.store.answers import tables
from hagane.store.database import Database
from hagane.store.paging import Page, Paging, select_page, without_sequence
from hagane.system.errors import NotFoundError

_feedback = tables.feedback

Thumbs = Literal["up", "down"]
# The most judgements for one decision.
_MOST_JUDGED = 10_000
# Given by the author; the other fields follow from the completion.
_JUDGEMENT = (
    "thumbs", "score", "correction", "preferred_over", "preferred_over_choice",
    "preferred_over_arm", "comment", "tags",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Feedback:
    """A judgement of the choice `choice` of `completion` by `author`.

    `score` is from 0 to 1. `correction` is the answer as it should have been. `preferred_over` is
    the completion whose choice `preferred_over_choice` is worse than this one. `key`, `user`,
    `model`, `alias` and `arm` are those of the completion, `preferred_over_arm` is that of the
    worse one, where the same alias answered.
    """

    completion: str
    key: str
    model: str
    choice: int = 0
    author: str = ""
    user: str | None = None
    alias: str | None = None
    arm: str | None = None
    thumbs: Thumbs | None = None
    score: float | None = None
    correction: str | None = None
    preferred_over: str | None = None
    preferred_over_choice: int = 0
    preferred_over_arm: str | None = None
    comment: str | None = None
    tags: list[str] = field(default_factory=list)
    created_at: int = field(default_factory=lambda: int(time.time()))
    updated_at: int = field(default_factory=lambda: int(time.time()))
    id: str = field(default_factory=lambda: f"feedback-{uuid.uuid4().hex[:24]}")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of judgement it holds, as metrics count them."""
        kinds = {
            "thumbs_up": self.thumbs == "up",
            "thumbs_down": self.thumbs == "down",
            "score": self.score is not None,
            "correction": self.correction is not None,
            "preference": self.preferred_over is not None,
            "comment": self.comment is not None,
        }
        return tuple(kind for kind, given in kinds.items() if given)


class FeedbackLog:
    """All feedback of one data directory. A `key` of None is the administrator's."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, given: Feedback) -> tuple[Feedback, bool]:
        """Keep `given`, in place of the author's earlier feedback on the same choice.

        Returns what is kept and whether anything changed: the same judgement again changes nothing.
        """
        same = (
            _feedback.c.completion == given.completion,
            _feedback.c.choice == given.choice,
            _feedback.c.author == given.author,
        )
        with self._database.write() as connection:
            row = connection.execute(sa.select(_feedback).where(*same)).mappings().one_or_none()
            if row is None:
                connection.execute(_feedback.insert().values(**vars(given)))
                return given, True
            before = _read(without_sequence(row))
            judged = {name: getattr(given, name) for name in _JUDGEMENT}
            if judged == {name: getattr(before, name) for name in _JUDGEMENT}:
                return before, False
            judged["updated_at"] = given.updated_at
            connection.execute(_feedback.update().where(*same).values(**judged))
        return replace(before, **judged), True

    def list(
        self, paging: Paging, key: str | None, completion: str | None = None
    ) -> Page[Feedback]:
        """A page of feedback, optionally on one completion. Raises as paging does."""
        conditions = [_feedback.c.key == key] if key is not None else []
        if completion is not None:
            conditions.append(_feedback.c.completion == completion)
        with self._database.read() as connection:
            return select_page(connection, _feedback, paging, _read, *conditions)

    def on(self, completions: Sequence[str]) -> Sequence[Feedback]:
        """All feedback on `completions`, oldest first."""
        query = sa.select(_feedback).where(_feedback.c.completion.in_(completions))
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(_feedback.c.sequence)).mappings()
            return [_read(without_sequence(row)) for row in rows]

    def of_alias(self, alias: str, since: int) -> Sequence[Feedback]:
        """The latest judgements of answers of `alias` from the Unix second `since` on, in order."""
        own = (_feedback.c.alias == alias, _feedback.c.created_at >= since)
        query = sa.select(_feedback).where(*own).order_by(_feedback.c.sequence.desc())
        with self._database.read() as connection:
            rows = connection.execute(query.limit(_MOST_JUDGED)).mappings().all()
        return [_read(without_sequence(row)) for row in reversed(rows)]

    def delete(self, feedback_id: str, key: str | None) -> None:
        """Raises NotFoundError."""
        own = [_feedback.c.id == feedback_id]
        own += [_feedback.c.key == key] if key is not None else []
        with self._database.write() as connection:
            if not connection.execute(_feedback.delete().where(*own)).rowcount:
                raise NotFoundError(f"There is no feedback '{feedback_id}'.", param="feedback_id")


def _read(row: dict[str, Any]) -> Feedback:
    return Feedback(**row)
