"""Canaries: candidates of aliases that are being tried out, with what was seen and decided."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import sqlalchemy as sa

from hagane.store.answers import tables
from hagane.store.database import Database
from hagane.store.paging import without_sequence

_canaries, _events = tables.canaries, tables.canary_events

State = Literal["running", "held", "promoted", "rolled_back", "superseded"]
_EVENTS_SHOWN = 100


@dataclass(frozen=True, kw_only=True)
class Canary:
    """The trial of `candidate` on the generation `generation` of an alias.

    `counts` has "target" and "candidate", `reason` says what the state rests on.
    """

    alias: str
    generation: int
    target: str
    candidate: str
    policy: dict[str, Any]
    state: State = "running"
    counts: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    created_at: int = field(default_factory=lambda: int(time.time()))
    decided_at: int | None = None
    id: str = field(default_factory=lambda: f"canary-{uuid.uuid4().hex[:24]}")


@dataclass(frozen=True)
class CanaryEvent:
    """Something that happened to a canary."""

    message: str
    level: Literal["info", "warn"] = "info"
    data: dict[str, Any] = field(default_factory=dict)
    created_at: int = field(default_factory=lambda: int(time.time()))
    id: str = field(default_factory=lambda: f"canaryevent-{uuid.uuid4().hex[:24]}")


class Canaries:
    """All canaries of one data directory. The newest of an alias is the one in force."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, canary: Canary) -> None:
        """Start a trial; an earlier one of the same alias ends undecided."""
        with self._database.write() as connection:
            _supersede(connection, canary.alias)
            connection.execute(_canaries.insert().values(**vars(canary)))
            message = f"{canary.candidate} is tried out against {canary.target}"
            _insert(connection, canary.id, CanaryEvent(message))

    def supersede(self, alias: str) -> None:
        """End the trial of an alias that was changed by hand."""
        with self._database.write() as connection:
            _supersede(connection, alias)

    def running(self) -> Sequence[Canary]:
        """The trials that wait for a decision."""
        query = sa.select(_canaries).where(_canaries.c.state == "running")
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(_canaries.c.sequence)).mappings()
            return [_read(row) for row in rows]

    def latest(self, alias: str) -> Canary | None:
        """The newest trial of an alias."""
        query = sa.select(_canaries).where(_canaries.c.alias == alias)
        with self._database.read() as connection:
            row = connection.execute(query.order_by(_canaries.c.sequence.desc()).limit(1))
            found = row.mappings().one_or_none()
        return None if found is None else _read(found)

    def record(self, canary_id: str, counts: dict[str, Any], reason: str) -> None:
        """Keep what was seen so far."""
        with self._database.write() as connection:
            own = _canaries.c.id == canary_id
            connection.execute(_canaries.update().where(own).values(counts=counts, reason=reason))

    def decide(self, canary_id: str, state: State, reason: str, event: CanaryEvent) -> bool:
        """Change the state of a running trial; False if it was decided before."""
        own = (_canaries.c.id == canary_id, _canaries.c.state == "running")
        values = {"state": state, "reason": reason, "decided_at": int(time.time())}
        with self._database.write() as connection:
            if not connection.execute(_canaries.update().where(*own).values(**values)).rowcount:
                return False
            _insert(connection, canary_id, event)
        return True

    def note(self, canary_id: str, event: CanaryEvent) -> None:
        """Add an event."""
        with self._database.write() as connection:
            _insert(connection, canary_id, event)

    def events(self, canary_id: str) -> Sequence[CanaryEvent]:
        """The latest events, newest first."""
        query = sa.select(_events).where(_events.c.canary == canary_id)
        query = query.order_by(_events.c.sequence.desc()).limit(_EVENTS_SHOWN)
        with self._database.read() as connection:
            rows = [without_sequence(row) for row in connection.execute(query).mappings()]
        return [CanaryEvent(**{k: v for k, v in row.items() if k != "canary"}) for row in rows]


def _supersede(connection: sa.Connection, alias: str) -> None:
    open_ones = (_canaries.c.alias == alias, _canaries.c.state.in_(("running", "held")))
    values = {"state": "superseded", "decided_at": int(time.time())}
    connection.execute(_canaries.update().where(*open_ones).values(**values))


def _insert(connection: sa.Connection, canary_id: str, event: CanaryEvent) -> None:
    connection.execute(_events.insert().values(canary=canary_id, **vars(event)))


def _read(row: sa.RowMapping) -> Canary:
    return Canary(**without_sequence(row))
