"""Batches by owner: their order, and how many of them are kept."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from hagane.store import batches as module
from hagane.store import migrations, tables
from hagane.store.batches import StoredBatch
from hagane.store.paging import Paging
from hagane.store.sqlite import SqliteDatabase
from hagane.system.errors import NotFoundError


def batch(number: int, owner: str = "", status: str = "validating") -> StoredBatch:
    counts = {"total": 0, "completed": 0, "failed": 0}
    return StoredBatch(
        f"b{number}", 1, 2, status, "/v1/embeddings", "file", "24h", {}, {}, counts, [],
        owner=owner,
    )  # fmt: skip


def test_each_owner_has_a_queue(store):
    # A server that the others do not see claims nothing.
    store.database.beat()
    for number, owner in enumerate(["ours", "ours", "theirs", ""]):
        assert store.batches.add(batch(number, owner))
    served: list[str] = []
    while (found := store.batches.next(served)) is not None:
        served.append(found.owner)
        assert found.id == {"ours": "b0", "theirs": "b2", "": "b3"}[found.owner]
    assert served == ["ours", "theirs", ""]
    assert [found.id for found in store.batches.list(Paging(), "ours").items] == ["b1", "b0"]
    assert len(store.batches.list(Paging()).items) == 4
    assert store.batches.get("b2").owner == store.batches.get("b2", "theirs").owner == "theirs"
    with pytest.raises(NotFoundError, match="b2"):
        store.batches.get("b2", "ours")


def test_of_an_owner_with_bounds_so_many_wait_and_so_many_are_kept(store, monkeypatch):
    monkeypatch.setattr(module, "_KEPT_FINISHED", 2)
    assert store.batches.add(batch(0, "ours"), 2)
    assert store.batches.add(batch(1, "ours"), 2)
    assert not store.batches.add(batch(2, "ours"), 2)
    assert store.batches.add(batch(2, "theirs"), 2)
    for number in (0, 1):
        store.batches.move(f"b{number}", ("validating",), "failed", 3)
    for number in range(3, 6):
        assert store.batches.add(batch(number, "ours", "completed"), 2)
    ids = [found.id for found in store.batches.list(Paging(), "ours").items]
    assert ids == ["b5", "b4", "b3"]


def test_what_was_there_before_there_were_owners_is_the_administrators(tmp_path):
    before = SqliteDatabase(tmp_path / "db", migrations.MIGRATIONS[:6])
    row = {name: value for name, value in vars(batch(1)).items() if name != "owner"}
    with before.write() as connection:
        connection.execute(sa.insert(tables.batches).values(row))
    before.close()
    now = SqliteDatabase(tmp_path / "db")
    assert module.Batches(now).get("b1").owner == ""
    now.close()
