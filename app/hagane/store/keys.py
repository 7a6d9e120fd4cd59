"""API keys that were made while serving: their digests, limits and use by day."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import sqlalchemy as sa

from hagane.store import tables
from hagane.store.database import Database
from hagane.store.paging import Page, Paging, select_page, without_sequence
from hagane.system.errors import ConflictError, NotFoundError

_keys, _usage = tables.api_keys, tables.key_usage
_PREFIX = "sk-hagane-"
_RANDOM_BYTES = 32
_LABEL_LENGTH = 8
MAX_KEYS = 10_000


def key_label(key: str) -> str:
    """A short name of an API key, for metrics and logs: the key cannot be derived from it."""
    return _digest(key)[:_LABEL_LENGTH]


def _digest(key: str) -> str:
    # The keys are random, so that a fast hash is as good as a slow one.
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(frozen=True)
class KeyLimits:
    """What a key may use: requests and tokens a minute, requests at a time. None has no limit."""

    requests: int | None = None
    tokens: int | None = None
    concurrent: int | None = None


@dataclass(frozen=True)
class ApiKey:
    """One key that was made. `hint` is its end, by which its holder recognizes it.

    Limits that are None are those of the settings. Times are Unix seconds.
    """

    id: str
    name: str
    digest: str
    hint: str
    created_at: int
    limits: KeyLimits = KeyLimits()
    urgent: bool = False
    expires_at: int | None = None
    revoked_at: int | None = None

    @property
    def label(self) -> str:
        """As `key_label` of the key."""
        return self.digest[:_LABEL_LENGTH]

    def matches(self, key: str) -> bool:
        """Whether this is the record of `key`."""
        return hmac.compare_digest(self.digest, _digest(key))

    def valid(self, now: float) -> bool:
        """Whether requests may come with it."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


@dataclass
class KeyUse:
    """What a key used on one day."""

    requests: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0


@dataclass(frozen=True)
class DayOfUse:
    """`use` of the key with this label on a day in UTC, as 2026-11-28."""

    label: str
    day: str
    use: KeyUse = field(default_factory=KeyUse)


class ApiKeys:
    """The keys of one data directory. A key itself is never stored."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self, name: str, limits: KeyLimits, *, urgent: bool, expires_at: int | None
    ) -> tuple[ApiKey, str]:
        """Make a key; returns its record and the key, which nobody can see again.

        Raises ConflictError when there are as many as may be, DiskFullError.
        """
        with self._database.write() as connection:
            count = connection.execute(sa.select(sa.func.count()).select_from(_keys)).scalar_one()
            if count >= MAX_KEYS:
                raise ConflictError(f"There are {count} keys, as many as may be made.")
            labels = set(connection.execute(sa.select(sa.func.substr(_keys.c.digest, 1, 8))))
            while True:
                key = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
                # Labels own stored answers and name accounts: no two keys may share one.
                if (key_label(key),) not in labels:
                    break
            made = ApiKey(
                id=f"key_{secrets.token_hex(12)}", name=name, digest=_digest(key), hint=key[-4:],
                created_at=int(time.time()), limits=limits, urgent=urgent, expires_at=expires_at,
            )  # fmt: skip
            connection.execute(_keys.insert().values(**_row(made)))
        return made, key

    def all(self) -> list[ApiKey]:
        """Every key, revoked and expired ones too, oldest first."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(_keys).order_by(_keys.c.sequence)).mappings()
            return [_key(without_sequence(row)) for row in rows]

    def get(self, key_id: str) -> ApiKey:
        """Raises NotFoundError."""
        with self._database.read() as connection:
            return _get(connection, key_id)

    def change(self, key_id: str, **values: Any) -> ApiKey:
        """Change fields of a key. Raises NotFoundError, or ConflictError for a revoked one."""
        with self._database.write() as connection:
            before = _get(connection, key_id)
            if before.revoked_at is not None:
                raise ConflictError(f"The key '{key_id}' is revoked; make another.")
            after = replace(before, **values)
            update = _keys.update().where(_keys.c.id == key_id)
            connection.execute(update.values(**_row(after)))
        return after

    def add_use(self, days: Mapping[tuple[str, str], KeyUse]) -> None:
        """Add what keys have used since the last time, by label and day. Raises DiskFullError."""
        with self._database.write() as connection:
            for (label, day), use in days.items():
                same = sa.and_(_usage.c.label == label, _usage.c.day == day)
                sums = {name: _usage.c[name] + count for name, count in asdict(use).items()}
                updated = connection.execute(_usage.update().where(same).values(**sums))
                if not updated.rowcount:
                    row = {"label": label, "day": day, **asdict(use)}
                    connection.execute(_usage.insert().values(**row))

    def use(self, first_day: str, label: str | None = None) -> list[DayOfUse]:
        """The use from `first_day` on, newest first, of one key or of all."""
        query = sa.select(_usage).where(_usage.c.day >= first_day)
        if label is not None:
            query = query.where(_usage.c.label == label)
        query = query.order_by(_usage.c.day.desc(), _usage.c.label)
        with self._database.read() as connection:
            rows = [dict(row) for row in connection.execute(query).mappings()]
        return [DayOfUse(row.pop("label"), row.pop("day"), KeyUse(**row)) for row in rows]

    def list(self, paging: Paging) -> Page[ApiKey]:
        """A page of keys. Raises InvalidRequestError as paging does."""
        with self._database.read() as connection:
            return select_page(connection, _keys, paging, _key)


def _get(connection: sa.Connection, key_id: str) -> ApiKey:
    row = connection.execute(sa.select(_keys).where(_keys.c.id == key_id)).mappings().first()
    if row is None:
        raise NotFoundError(f"There is no key '{key_id}'.", param="key_id")
    return _key(without_sequence(row))


def _key(row: Mapping[str, Any]) -> ApiKey:
    values = dict(row)
    return ApiKey(**values | {"limits": KeyLimits(**values["limits"])})


def _row(key: ApiKey) -> dict[str, Any]:
    return vars(key) | {"limits": asdict(key.limits)}
