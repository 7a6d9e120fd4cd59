"""Training jobs: a durable queue, with the jobs' events and checkpoints.

Only `transition` and `succeed` change a status. They name the statuses that it may change from, so
that of two concurrent changes only one takes effect (compare-and-swap). What a server says about a
job that it works on, it says as `held`: it counts only as long as the job is that server's.
"""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import sqlalchemy as sa

from hagane.store import tables
from hagane.store.artifacts import ServedArtifact, put_artifact
from hagane.store.database import Database, claim
from hagane.store.paging import Page, Paging, select_page, without_sequence
from hagane.system.errors import NotFoundError

logger = logging.getLogger(__name__)

_jobs, _events, _checkpoints = tables.jobs, tables.events, tables.checkpoints

Kind = Literal["fine_tuning", "pretraining"]
Status = Literal[
    "validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"
]
UNFINISHED: tuple[Status, ...] = ("validating_files", "queued", "running", "paused")
_FINISHED: tuple[Status, ...] = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class Job:
    """One job. `model` is the base model's id; times are Unix seconds.

    `request` is the client's request, `spec` the worker's input, `plan` the values that "auto"
    resolved to, `progress` the last step's report, `result` the figures that the gate decided by.
    `deaths` counts workers that died unexpectedly since the last checkpoint. `server` is the one of
    several servers that works on it, as long as that lives.
    """

    id: str
    created_at: int
    status: Status
    model: str
    training_file: str
    request: dict[str, Any]
    spec: dict[str, Any]
    suffix: str | None = None
    validation_file: str | None = None
    finished_at: int | None = None
    fine_tuned_model: str | None = None
    trained_tokens: int | None = None
    error: dict[str, Any] | None = None
    plan: dict[str, Any] | None = None
    progress: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    heartbeat_at: float | None = None
    deaths: int = 0
    server: str | None = None

    @property
    def kind(self) -> Kind:
        """The kind of training: an adapter or weights from a base, or a model from text."""
        kind: Kind = self.request.get("kind", "fine_tuning")
        return kind

    @property
    def finished(self) -> bool:
        """Whether the status is final."""
        return self.status in _FINISHED

    @property
    def model_name(self) -> str:
        """The name of the job's result: `ft:BASE:SUFFIX:ID`."""
        return f"ft:{self.model}:{self.suffix or ''}:{self.id[-8:]}"

    @property
    def pretrained_name(self) -> str:
        """The name of a pretrained model, which is also a file name: `NAME-ID`."""
        return f"{self.model}-{self.id[-8:]}"

    def checkpoint_name(self, step: int) -> str:
        """The model name of the checkpoint after `step` steps."""
        return f"{self.model_name}:ckpt-step-{step}"


@dataclass(frozen=True)
class Event:
    """Something that happened to a job."""

    message: str
    level: Literal["info", "warn", "error"] = "info"
    type: Literal["message", "metrics"] = "message"
    data: dict[str, Any] = field(default_factory=dict)
    created_at: int = field(default_factory=lambda: int(time.time()))
    id: str = field(default_factory=lambda: f"ftevent-{uuid.uuid4().hex[:24]}")


@dataclass(frozen=True)
class JobCheckpoint:
    """A checkpoint that can be served; `digest` is the hash of an adapter (`adapter_digest`).

    `digest` is empty for the standalone model that full fine-tuning writes. A checkpoint that a
    request named (`asked_for`) is never pruned.
    """

    name: str
    step: int
    directory: str
    digest: str
    metrics: dict[str, Any]
    asked_for: bool = False
    created_at: int = field(default_factory=lambda: int(time.time()))
    id: str = field(default_factory=lambda: f"ftckpt_{uuid.uuid4().hex[:24]}")


def new_job_id() -> str:
    """A new unique job id."""
    return f"ftjob-{uuid.uuid4().hex[:24]}"


class Jobs:
    """All jobs of one data directory, or of several servers.

    `place` is the data directory of this server among those of others. A job whose request names a
    place reads and writes what only that has.
    """

    def __init__(self, database: Database, place: str | None = None) -> None:
        self._database, self.place = database, place

    def add(self, job: Job, *events: Event) -> None:
        """Add a new job with its first events."""
        with self._database.write(turns=False) as connection:
            connection.execute(_jobs.insert().values(**vars(job)))
            _insert_events(connection, job.id, events)
        # Logged with the request's id: it connects the request to the job's id in later lines.
        logger.info("job %s is added", job.id)

    def get(self, job_id: str) -> Job:
        """The job. Raises NotFoundError."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(_jobs).where(_jobs.c.id == job_id)).mappings()
            found = row.one_or_none()
        if found is None:
            raise NotFoundError(
                f"There is no fine-tuning job '{job_id}'.", param="fine_tuning_job_id"
            )
        return Job(**without_sequence(found))

    def list(
        self,
        paging: Paging,
        metadata: Mapping[str, str] | None = None,
        kind: Kind = "fine_tuning",
    ) -> Page[Job]:
        """A page of the jobs of `kind` with `metadata`. Raises as `select_page` does."""
        carried, stored = _jobs.c.request["metadata"], _jobs.c.request["kind"].as_string()
        conditions = [carried[key].as_string() == v for key, v in (metadata or {}).items()]
        conditions.append(sa.func.coalesce(stored, "fine_tuning") == kind)
        with self._database.read() as connection:
            return select_page(connection, _jobs, paging, lambda row: Job(**row), *conditions)

    def first(self, *statuses: Status) -> Job | None:
        """The oldest job in the first of `statuses` that has one."""
        with self._database.read() as connection:
            for status in statuses:
                query = sa.select(_jobs).where(_jobs.c.status == status)
                row = connection.execute(query.order_by(_jobs.c.sequence).limit(1)).mappings()
                if (found := row.one_or_none()) is not None:
                    return Job(**without_sequence(found))
        return None

    def claim(self, *statuses: Status, without: Collection[str] = ()) -> Job | None:
        """The oldest job in the first of `statuses` that has one which no other server works on.

        Those whose ids are in `without` are passed over.

        It is this server's until it is released, or until this server is no longer seen.
        """
        here: list[sa.ColumnElement[bool]] = [_jobs.c.id.not_in(without)]
        if self.place is not None:
            bound = _jobs.c.request["place"].as_string()
            here.append(sa.or_(bound.is_(None), bound == self.place))
        for status in statuses:
            if (row := claim(self._database, _jobs, _jobs.c.status == status, *here)) is not None:
                return Job(**row)
        return None

    def is_held(self, job_id: str, server: str | None) -> bool:
        """Whether the job runs and is `server`'s: cheap enough to read after every step."""
        held = (_jobs.c.id == job_id, _jobs.c.status == "running")
        with self._database.read() as connection:
            row = connection.execute(sa.select(_jobs.c.server).where(*held)).one_or_none()
        return row is not None and row.server == server

    def status(self, job_id: str) -> Status | None:
        """The job's status, or None for an unknown job."""
        with self._database.read() as connection:
            query = sa.select(_jobs.c.status).where(_jobs.c.id == job_id)
            status: Status | None = connection.execute(query).scalar_one_or_none()
        return status

    def transition(
        self,
        job_id: str,
        source: Collection[Status],
        target: Status,
        *events: Event,
        held: Job | None = None,
        **values: Any,
    ) -> bool:
        """Change the status from one of `source` to `target` and set `values`.

        Returns False, and changes nothing, if the status was another, or `held` is no more.
        """
        if target in _FINISHED:
            values["finished_at"] = int(time.time())
        with self._database.write(turns=False) as connection:
            changed = connection.execute(
                _jobs.update()
                .where(_jobs.c.id == job_id, _jobs.c.status.in_(source), _is_still(held))
                .values(status=target, **values)
            ).rowcount
            if changed:
                _insert_events(connection, job_id, events)
        return bool(changed)

    def record(
        self,
        job_id: str,
        events: Sequence[Event] = (),
        *,
        held: Job | None = None,
        **values: Any,
    ) -> None:
        """Add events that are not there yet, and set columns other than the status.

        Does nothing where `held` is no more.
        """
        known = sa.select(_events.c.id).where(_events.c.id.in_([event.id for event in events]))
        with self._database.write(turns=False) as connection:
            if not _keep(connection, job_id, held):
                return
            if values:
                connection.execute(_jobs.update().where(_jobs.c.id == job_id).values(**values))
            there = set(connection.execute(known).scalars()) if events else set()
            _insert_events(connection, job_id, [e for e in events if e.id not in there])

    def succeed(
        self,
        job_id: str,
        model: ServedArtifact | None,
        events: Sequence[Event],
        *,
        held: Job | None = None,
        **values: Any,
    ) -> bool:
        """Change from running to succeeded, and add the result.

        Returns False, and changes nothing, if it was not running, or `held` is no more.
        """
        values |= {"status": "succeeded", "finished_at": int(time.time())}
        running = (_jobs.c.id == job_id, _jobs.c.status == "running", _is_still(held))
        with self._database.write() as connection:
            if not connection.execute(_jobs.update().where(*running).values(**values)).rowcount:
                return False
            if model is not None:
                put_artifact(connection, model)
            _insert_events(connection, job_id, events)
        return True

    def count_death(self, job_id: str, event: Event) -> int:
        """Count a worker's unexpected death; returns the number since the last checkpoint."""
        with self._database.write(turns=False) as connection:
            deaths: int = connection.execute(
                _jobs.update()
                .where(_jobs.c.id == job_id)
                .values(deaths=_jobs.c.deaths + 1)
                .returning(_jobs.c.deaths)
            ).scalar_one()
            _insert_events(connection, job_id, (event,))
        return deaths

    def events(self, job_id: str, paging: Paging) -> Page[Event]:
        """A page of the job's events. Raises as `select_page` does."""
        with self._database.read() as connection:
            return select_page(connection, _events, paging, _event, _events.c.job == job_id)

    def add_checkpoint(
        self, job_id: str, checkpoint: JobCheckpoint, *events: Event, held: Job | None = None
    ) -> bool:
        """Add a checkpoint, unless a worker that died right after adding it already did.

        Returns False, and adds nothing, where `held` is no more.
        """
        with self._database.write() as connection:
            if not _keep(connection, job_id, held):
                return False
            known = sa.select(_checkpoints.c.id).where(_checkpoints.c.name == checkpoint.name)
            if connection.execute(known).scalar() is not None:
                return True
            connection.execute(_checkpoints.insert().values(job=job_id, **vars(checkpoint)))
            connection.execute(_jobs.update().where(_jobs.c.id == job_id).values(deaths=0))
            _insert_events(connection, job_id, events)
        return True

    def prune_checkpoints(self, job_id: str, kept: int) -> Sequence[JobCheckpoint]:
        """Remove all but `kept` checkpoints; the caller removes their directories.

        Keeps the one with the lowest validation loss, then the latest. Those that requests named
        are kept in addition.
        """
        query = sa.select(_checkpoints).where(_checkpoints.c.job == job_id)
        with self._database.write() as connection:
            rows = connection.execute(query.order_by(_checkpoints.c.step.desc())).mappings()
            latest = [_checkpoint(without_sequence(row)) for row in rows]
            best = min(latest, key=_rank, default=None)
            candidates = [c for c in latest if c is not best and not c.asked_for]
            removed = candidates[kept - 1 :]
            names = [checkpoint.name for checkpoint in removed]
            connection.execute(_checkpoints.delete().where(_checkpoints.c.name.in_(names)))
        return removed

    def checkpoint_digests(self, job_id: str) -> Sequence[str]:
        """The digests of all the job's checkpoints."""
        query = sa.select(_checkpoints.c.digest).where(_checkpoints.c.job == job_id)
        with self._database.read() as connection:
            return list(connection.execute(query).scalars())

    def checkpoints(self, job_id: str, paging: Paging) -> Page[JobCheckpoint]:
        """A page of the job's checkpoints. Raises as `select_page` does."""
        own = _checkpoints.c.job == job_id
        with self._database.read() as connection:
            return select_page(connection, _checkpoints, paging, _checkpoint, own)


def _is_still(held: Job | None) -> sa.ColumnElement[bool]:
    """Whether the job is still the server's that it was when `held` was read."""
    if held is None or held.server is None:
        return sa.true()
    still: sa.ColumnElement[bool] = _jobs.c.server == held.server
    return still


def _keep(connection: sa.Connection, job_id: str, held: Job | None) -> bool:
    """As `_is_still`; if so, the job stays that server's until the transaction ends."""
    if held is None or held.server is None:
        return True
    query = sa.select(_jobs.c.id).where(_jobs.c.id == job_id, _is_still(held))
    return connection.execute(query.with_for_update()).scalar() is not None


def _rank(checkpoint: JobCheckpoint) -> tuple[float, int]:
    """The best is the least; a loss that is NaN may have been stored as null."""
    loss = checkpoint.metrics["valid_loss"]
    return (math.inf if loss is None else loss, checkpoint.step)


def _insert_events(connection: sa.Connection, job_id: str, events: Sequence[Event]) -> None:
    if events:
        rows = [{"job": job_id, **vars(event)} for event in events]
        connection.execute(_events.insert(), rows)


def _event(row: dict[str, Any]) -> Event:
    return Event(**{name: value for name, value in row.items() if name != "job"})


def _checkpoint(row: dict[str, Any]) -> JobCheckpoint:
    return JobCheckpoint(**{name: value for name, value in row.items() if name != "job"})
