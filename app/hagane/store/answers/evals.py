"""Evals: questions and how answers are graded, runs of models over it, and their results."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import sqlalchemy as sa

from hagane.store.answers import tables
from hagane.store.database import Database, claim
from hagane.store.paging import Page, Paging, select_page, without_sequence
from hagane.system.errors import NotFoundError

_evals, _runs, _items = tables.evals, tables.eval_runs, tables.eval_items

RunStatus = Literal["queued", "in_progress", "completed", "canceled", "failed"]
UNFINISHED: tuple[RunStatus, ...] = ("queued", "in_progress")


def _now() -> int:
    return int(time.time())


@dataclass(frozen=True, kw_only=True)
class Eval:
    """`testing_criteria` are graders, `data_source_config` describes the items."""

    name: str
    data_source_config: dict[str, Any]
    testing_criteria: list[dict[str, Any]]
    metadata: dict[str, str] = field(default_factory=dict)
    created_at: int = field(default_factory=_now)
    id: str = field(default_factory=lambda: f"eval_{uuid.uuid4().hex[:24]}")


@dataclass(frozen=True, kw_only=True)
class EvalRun:
    """One model's run over the items of `data_source`; `total` is known once they are read.

    `server` is the one of several servers that works on it.
    """

    eval: str
    name: str
    model: str
    data_source: dict[str, Any]
    status: RunStatus = "queued"
    total: int = 0
    error: dict[str, Any] | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    server: str | None = None
    created_at: int = field(default_factory=_now)
    id: str = field(default_factory=lambda: f"evalrun_{uuid.uuid4().hex[:24]}")


@dataclass(frozen=True, kw_only=True)
class EvalItem:
    """The result of item `number` of a run: the answer, and what each grader gave."""

    run: str
    number: int
    status: Literal["pass", "fail", "error"]
    item: dict[str, Any]
    sample: dict[str, Any]
    results: list[dict[str, Any]]
    created_at: int = field(default_factory=_now)
    id: str = field(default_factory=lambda: f"outputitem_{uuid.uuid4().hex[:24]}")


class Evals:
    """All evals of one data directory."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, made: Eval) -> None:
        """Add an eval."""
        with self._database.write() as connection:
            connection.execute(_evals.insert().values(**vars(made)))

    def get(self, eval_id: str) -> Eval:
        """One eval. Raises NotFoundError."""
        return Eval(**self._row(_evals, eval_id, "eval_id"))

    def list(self, paging: Paging) -> Page[Eval]:
        """A page of evals. Raises as paging does."""
        with self._database.read() as connection:
            return select_page(connection, _evals, paging, lambda row: Eval(**row))

    def update(self, eval_id: str, **values: Any) -> Eval:
        """Change name or metadata. Raises NotFoundError."""
        with self._database.write() as connection:
            own = _evals.update().where(_evals.c.id == eval_id)
            if values and not connection.execute(own.values(**values)).rowcount:
                raise _not_found(eval_id, "eval_id")
        return self.get(eval_id)

    def delete(self, eval_id: str) -> None:
        """Delete an eval with its runs. Raises NotFoundError."""
        runs = sa.select(_runs.c.id).where(_runs.c.eval == eval_id)
        with self._database.write() as connection:
            connection.execute(_items.delete().where(_items.c.run.in_(runs)))
            connection.execute(_runs.delete().where(_runs.c.eval == eval_id))
            if not connection.execute(_evals.delete().where(_evals.c.id == eval_id)).rowcount:
                raise _not_found(eval_id, "eval_id")

    def add_run(self, run: EvalRun) -> None:
        """Queue a run."""
        with self._database.write() as connection:
            connection.execute(_runs.insert().values(**vars(run)))

    def run(self, run_id: str, eval_id: str | None = None) -> EvalRun:
        """One run, optionally only if it is of an eval. Raises NotFoundError."""
        found = EvalRun(**self._row(_runs, run_id, "run_id"))
        if eval_id not in (None, found.eval):
            raise _not_found(run_id, "run_id")
        return found

    def runs(self, eval_id: str, paging: Paging, status: str | None = None) -> Page[EvalRun]:
        """A page of an eval's runs. Raises as paging does."""
        conditions = [_runs.c.eval == eval_id]
        if status is not None:
            conditions.append(_runs.c.status == status)
        with self._database.read() as connection:
            return select_page(connection, _runs, paging, lambda row: EvalRun(**row), *conditions)

    def next_run(self) -> EvalRun | None:
        """The oldest run that has not ended; no other server works on it."""
        row = claim(self._database, _runs, _runs.c.status.in_(UNFINISHED))
        return None if row is None else EvalRun(**row)

    def move(self, run_id: str, status: RunStatus, **values: Any) -> bool:
        """Change the status of a run of this server's that has not ended; False for another."""
        own = (
            _runs.c.id == run_id,
            _runs.c.status.in_(UNFINISHED),
            self._database.free(_runs.c.server),
        )
        with self._database.write(turns=False) as connection:
            changed = connection.execute(
                _runs.update().where(*own).values(status=status, **values)
            ).rowcount
        return bool(changed)

    def cancel_run(self, run_id: str) -> bool:
        """End a run, whichever server works on it; False if it has ended."""
        own = (_runs.c.id == run_id, _runs.c.status.in_(UNFINISHED))
        with self._database.write(turns=False) as connection:
            changed = connection.execute(_runs.update().where(*own).values(status="canceled"))
            return bool(changed.rowcount)

    def delete_run(self, run_id: str) -> None:
        """Delete a run with its results. Raises NotFoundError."""
        with self._database.write() as connection:
            connection.execute(_items.delete().where(_items.c.run == run_id))
            if not connection.execute(_runs.delete().where(_runs.c.id == run_id)).rowcount:
                raise _not_found(run_id, "run_id")

    def add_item(self, item: EvalItem) -> None:
        """Keep a result, unless a server that has lost the run, or took it over, already did."""
        known = sa.select(_items.c.id).where(
            _items.c.run == item.run, _items.c.number == item.number
        )
        with self._database.write() as connection:
            if connection.execute(known).scalar() is None:
                connection.execute(_items.insert().values(**vars(item)))

    def item(self, item_id: str) -> EvalItem:
        """One result. Raises NotFoundError."""
        return EvalItem(**self._row(_items, item_id, "output_item_id"))

    def items(self, run_id: str, paging: Paging, status: str | None = None) -> Page[EvalItem]:
        """A page of a run's results. Raises as paging does."""
        conditions = [_items.c.run == run_id]
        if status is not None:
            conditions.append(_items.c.status == status)
        with self._database.read() as connection:
            return select_page(connection, _items, paging, lambda row: EvalItem(**row), *conditions)

    def results(self, run_id: str) -> Sequence[tuple[int, str, Sequence[dict[str, Any]]]]:
        """(number, status, results) of all items of a run that are done."""
        query = sa.select(_items.c.number, _items.c.status, _items.c.results)
        with self._database.read() as connection:
            rows = connection.execute(query.where(_items.c.run == run_id)).all()
        return [(row.number, row.status, row.results) for row in rows]

    def _row(self, table: sa.Table, entry_id: str, param: str) -> dict[str, Any]:
        with self._database.read() as connection:
            row = connection.execute(sa.select(table).where(table.c.id == entry_id)).mappings()
            found = row.one_or_none()
        if found is None:
            raise _not_found(entry_id, param)
        return without_sequence(found)


def _not_found(entry_id: str, param: str) -> NotFoundError:
    what = {"eval_id": "eval", "run_id": "run", "output_item_id": "output item"}[param]
    return NotFoundError(f"There is no {what} '{entry_id}'.", param=param)
