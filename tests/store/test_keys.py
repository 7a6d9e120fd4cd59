"""API keys in a real database."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from hagane.store import tables
from hagane.store.keys import KeyLimits, KeyUse, key_label
from hagane.store.paging import Paging
from hagane.system.errors import ConflictError, NotFoundError


@pytest.fixture
def keys(store):
    return store.keys


def test_a_key_is_stored_as_its_digest_alone(keys, store):
    made, key = keys.create("ci", KeyLimits(requests=5), urgent=True, expires_at=None)
    assert key.startswith("sk-hagane-") and key.endswith(made.hint)
    assert made.label == key_label(key)
    assert made.matches(key) and not made.matches(f"{key}x")
    assert keys.get(made.id) == made
    assert keys.all() == [made]
    assert keys.list(Paging()).items == [made]
    with store.database.read() as connection:
        stored = repr(connection.execute(sa.select(tables.api_keys)).all())
    assert made.digest in stored
    assert key not in stored


def test_a_key_ends_by_its_time_or_for_good(keys):
    made, _ = keys.create("ci", KeyLimits(), urgent=False, expires_at=1000)
    assert made.valid(999) and not made.valid(1000)
    renamed = keys.change(made.id, name="cd", limits=KeyLimits(tokens=7), expires_at=2000)
    assert (renamed.name, renamed.limits.tokens, renamed.valid(1000)) == ("cd", 7, True)
    revoked = keys.change(made.id, revoked_at=500)
    assert not revoked.valid(400)
    with pytest.raises(ConflictError, match="revoked"):
        keys.change(made.id, name="again")
    with pytest.raises(NotFoundError, match="key_none"):
        keys.change("key_none", name="x")


def test_use_adds_up_by_key_and_day(keys):
    keys.add_use({("a", "2026-01-01"): KeyUse(1, 0, 10, 5), ("b", "2026-01-02"): KeyUse(1)})
    keys.add_use({("a", "2026-01-01"): KeyUse(2, 1, 1, 1)})
    first, second = keys.use("2026-01-01")
    assert (first.label, first.day, first.use) == ("b", "2026-01-02", KeyUse(1))
    assert (second.label, second.use) == ("a", KeyUse(3, 1, 11, 6))
    assert keys.use("2026-01-01", "a") == [second]
    assert keys.use("2026-01-03") == []
