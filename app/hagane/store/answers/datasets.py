"""Data sets made of stored answers: their versions, with a digest and a card of counts each."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa

from hagane.store.answers import tables
from hagane.store.database import Database
from hagane.store.paging import Page, Paging, select_page, without_sequence
from hagane.system.errors import NotFoundError

_datasets = tables.datasets


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One version of a data set; versions never change.

    `digest` is the hash of its records, `spec` the filter that it was built by, `card` its counts.
    `training_file` and `validation_file` are files of the store. `parent` is the version that an
    edit began from.
    """

    name: str
    method: str
    spec: dict[str, Any]
    digest: str
    card: dict[str, Any]
    training_file: str
    validation_file: str | None = None
    parent: str | None = None
    version: int = 0
    created_at: int = field(default_factory=lambda: int(time.time()))
    id: str = field(default_factory=lambda: f"dataset-{uuid.uuid4().hex[:24]}")


class Datasets:
    """All data sets of one data directory."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, dataset: Dataset) -> tuple[Dataset, bool]:
        """Add the next version of `dataset.name`.

        Returns the version, and False where the latest one has the same records: that one is
        returned then, and nothing is added.
        """
        query = sa.select(_datasets).where(_datasets.c.name == dataset.name)
        with self._database.write() as connection:
            row = connection.execute(query.order_by(_datasets.c.version.desc()).limit(1))
            found = row.mappings().one_or_none()
            last = None if found is None else _read(without_sequence(found))
            if last is not None and last.digest == dataset.digest:
                return last, False
            added = replace(dataset, version=1 if last is None else last.version + 1)
            connection.execute(_datasets.insert().values(**vars(added)))
        return added, True

    def get(self, dataset_id: str) -> Dataset:
        """One version. Raises NotFoundError."""
        query = sa.select(_datasets).where(_datasets.c.id == dataset_id)
        with self._database.read() as connection:
            row = connection.execute(query).mappings().one_or_none()
        if row is None:
            raise _not_found(dataset_id)
        return _read(without_sequence(row))

    def list(self, paging: Paging, name: str | None = None) -> Page[Dataset]:
        """A page of versions, optionally of one data set. Raises as paging does."""
        conditions = [] if name is None else [_datasets.c.name == name]
        with self._database.read() as connection:
            return select_page(connection, _datasets, paging, _read, *conditions)

    def delete(self, dataset_id: str) -> None:
        """Delete a version; its files stay the caller's business. Raises NotFoundError."""
        with self._database.write() as connection:
            gone = _datasets.delete().where(_datasets.c.id == dataset_id)
            if not connection.execute(gone).rowcount:
                raise _not_found(dataset_id)


def _read(row: dict[str, Any]) -> Dataset:
    return Dataset(**row)


def _not_found(dataset_id: str) -> NotFoundError:
    return NotFoundError(f"There is no data set '{dataset_id}'.", param="dataset_id")
