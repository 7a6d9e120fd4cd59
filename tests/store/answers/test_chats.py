"""Conversations in a real database: revisions, bounds, and who sees which."""

from __future__ import annotations

import time

import pytest
from hagane.system.errors import ConflictError, NotFoundError, TooLargeError

OWNER, LONG_AGO = "label", 0.0


@pytest.fixture
def chats(store):
    return store.answers.chats


def put(chats, name, seen, body, owner=OWNER, most=1000, since=LONG_AGO):
    return chats.put(owner, name, seen, body, most_bytes=most, since=since)


def test_every_change_counts_the_revision_up(chats):
    assert put(chats, "a", 0, "one").revision == 1
    entry = put(chats, "a", 1, "二")
    assert (entry.revision, entry.size) == (2, 3)
    assert chats.get(OWNER, "a", LONG_AGO) == (entry, "二")
    for seen in (0, 1, 3):
        with pytest.raises(ConflictError, match="revision 2"):
            put(chats, "a", seen, "lost")
    assert chats.get(OWNER, "a", LONG_AGO)[1] == "二"


def test_a_key_sees_its_own(chats):
    put(chats, "a", 0, "mine")
    assert chats.list("other", LONG_AGO) == []
    with pytest.raises(NotFoundError):
        chats.get("other", "a", LONG_AGO)
    with pytest.raises(NotFoundError):
        chats.delete("other", "a")
    assert put(chats, "a", 0, "theirs", owner="other").revision == 1
    assert chats.get(OWNER, "a", LONG_AGO)[1] == "mine"


def test_what_was_deleted_leaves_a_mark(chats):
    put(chats, "a", 0, "one")
    chats.delete(OWNER, "a")
    (mark,) = chats.list(OWNER, LONG_AGO)
    assert (mark.id, mark.revision, mark.size, mark.deleted) == ("a", 2, 0, True)
    with pytest.raises(NotFoundError):
        chats.get(OWNER, "a", LONG_AGO)
    with pytest.raises(NotFoundError):
        chats.delete(OWNER, "a")
    with pytest.raises(ConflictError):
        put(chats, "a", 1, "not seen that it was deleted")
    assert put(chats, "a", 2, "again").deleted is False


def test_room_and_age(chats):
    put(chats, "a", 0, "x" * 600)
    with pytest.raises(TooLargeError, match="stored_chats allows 1000"):
        put(chats, "b", 0, "x" * 401)
    put(chats, "b", 0, "x" * 400)
    put(chats, "a", 1, "x" * 500)
    assert [entry.id for entry in chats.list(OWNER, LONG_AGO)] == ["a", "b"]
    later = time.time() + 1
    assert chats.list(OWNER, later) == []
    assert put(chats, "c", 0, "x" * 1000, since=later).revision == 1
    assert [entry.id for entry in chats.list(OWNER, LONG_AGO)] == ["c"]


def test_marks_take_no_chats_room_and_the_oldest_go(chats, monkeypatch):
    monkeypatch.setattr("hagane.store.answers.chats.MOST_CHATS", 2)
    for name in "abc":
        put(chats, name, 0, "x")
        chats.delete(OWNER, name)
    assert {entry.id for entry in chats.list(OWNER, LONG_AGO)} == {"b", "c"}
    put(chats, "d", 0, "x")
    put(chats, "e", 0, "x")
    assert put(chats, "e", 1, "y").revision == 2
    for name, seen in (("f", 0), ("c", 2)):
        with pytest.raises(TooLargeError, match="has 2 chats"):
            put(chats, name, seen, "x")
    put(chats, "f", 0, "x", owner="other")


def test_what_is_old_goes_of_all_owners(chats):
    put(chats, "a", 0, "x")
    put(chats, "a", 0, "x", owner="other")
    later = time.time() + 1
    chats.expire(later - 100)
    assert len(chats.list(OWNER, LONG_AGO)) == 1
    chats.expire(later)
    assert chats.list(OWNER, LONG_AGO) == chats.list("other", LONG_AGO) == []
