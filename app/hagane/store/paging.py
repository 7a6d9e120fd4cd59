"""Pagination with `after` and `limit`, as in OpenAI's API."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import sqlalchemy as sa

from hagane.system.errors import InvalidRequestError

T = TypeVar("T")


@dataclass(frozen=True)
class Paging:
    """A request for up to `limit` entries after the one with the id `after`."""

    after: str | None = None
    limit: int = 20
    newest_first: bool = True


@dataclass(frozen=True)
class Page(Generic[T]):
    """One page of entries, and whether more follow."""

    items: list[T]
    has_more: bool


def select_page(
    connection: sa.Connection,
    table: sa.Table,
    paging: Paging,
    make: Callable[[dict[str, Any]], T],
    *conditions: sa.ColumnElement[bool],
) -> Page[T]:
    """Select a page from `table`, which needs the columns `id` and `sequence`.

    Raises InvalidRequestError when nothing in the list has the id `after`.
    """
    query = sa.select(table).where(*conditions)
    if paging.after is not None:
        start = connection.execute(
            sa.select(table.c.sequence).where(table.c.id == paging.after, *conditions)
        ).scalar()
        if start is None:
            raise InvalidRequestError(
                f"'after' is '{paging.after}', which is not in this list.", param="after"
            )
        beyond = table.c.sequence < start if paging.newest_first else table.c.sequence > start
        query = query.where(beyond)
    order = table.c.sequence.desc() if paging.newest_first else table.c.sequence.asc()
    rows = connection.execute(query.order_by(order).limit(paging.limit + 1)).mappings().all()
    items = [make(without_sequence(row)) for row in rows[: paging.limit]]
    return Page(items, len(rows) > paging.limit)


def without_sequence(row: sa.RowMapping) -> dict[str, Any]:
    """The row's columns by name, without `sequence`."""
    return {name: value for name, value in row.items() if name != "sequence"}
