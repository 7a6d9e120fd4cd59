"""Stored completions in the database: bounds by bytes and age, filters, deletion."""

from __future__ import annotations

import json
import threading
import time

import pytest
from hagane.store.answers.answers import Answers
from hagane.store.answers.completions import CompletionFilter, StorageBounds
from hagane.store.answers.feedback import Feedback
from hagane.store.paging import Paging
from hagane.store.store import Store, StoreAddress
from hagane.system.errors import NotFoundError

FOREVER = StorageBounds(1 << 30, 1e9)


def row(name: str, *, age: float = 0, size: int = 100, **changes) -> dict:
    return {
        "id": name, "created_at": int(time.time() - age), "key": "k", "user": None, "model": "m",
        "alias": None, "arm": None, "conversation": "c", "bytes": size, "metadata": {},
        "request": json.dumps({"messages": []}), "response": json.dumps({"id": name}), **changes,
    }  # fmt: skip


def ids(answers: Answers, **wanted) -> list[str]:
    found = answers.completions.list(Paging(limit=100), CompletionFilter(**wanted)).items
    return sorted(stored.id for stored in found)


@pytest.fixture(params=["file", "memory", "postgres"])
def answers(request, tmp_path):
    if request.param == "memory":
        opened = Store.empty()
    else:
        shared = request.param == "postgres"
        url = request.getfixturevalue("postgres").url() if shared else None
        opened = Store.open(StoreAddress(tmp_path, url))
    yield opened.answers
    opened.close()


def test_the_oldest_make_room_and_the_old_expire(answers):
    store, bounds = answers.completions, StorageBounds(1000, 3600)
    assert store.add([row(f"a{i}") for i in range(10)], bounds) == 0
    assert (store.bytes, len(ids(answers))) == (1000, 10)
    # Down to nine tenths, so that the next write does not prune again.
    assert store.add([row("b")], bounds) == 2
    assert ids(answers) == sorted([*(f"a{i}" for i in range(2, 10)), "b"])
    assert store.bytes == 900
    assert store.add([row("late", age=7200)], StorageBounds(1 << 30, 3600)) == 0
    assert store.add([row("next")], StorageBounds(1 << 30, 3600)) == 0
    # In the order of insertion: an old one after newer ones goes when it comes to its turn.
    fresh = Store.empty().answers
    assert fresh.completions.add([row("old", age=7200), row("new")], StorageBounds(1000, 3600)) == 1
    assert ids(fresh) == ["new"]


def test_feedback_goes_with_its_completion(answers):
    answers.completions.add([row("a", user="u"), row("b")], FOREVER)
    for name in ("a", "b"):
        user = "u" if name == "a" else None
        given = Feedback(completion=name, key="k", model="m", thumbs="up", user=user)
        answers.feedback.put(given)
    answers.completions.delete("b", "k")
    assert [f.completion for f in answers.feedback.on(["a", "b"])] == ["a"]
    assert answers.completions.delete_user("u", "other") == (0, 0)
    assert answers.completions.delete_user("u", "k") == (1, 1)
    assert answers.completions.bytes == 0


def test_filters_and_another_key(answers):
    answers.completions.add(
        [
            row("a", model="x", alias="team", arm="candidate", metadata={"topic": 'it\'s "1"'}),
            row("b", model="x", alias="team", arm="target", age=500),
            row("c", key="other", user="u"),
        ],
        FOREVER,
    )
    assert ids(answers) == ["a", "b", "c"]
    assert ids(answers, key="k") == ["a", "b"]
    assert ids(answers, models=("x",), arms=("candidate",)) == ["a"]
    assert ids(answers, aliases=("team",)) == ["a", "b"]
    assert ids(answers, metadata={"topic": 'it\'s "1"'}) == ["a"]
    assert ids(answers, metadata={"topic": "2"}) == []
    assert ids(answers, user="u") == ["c"]
    assert ids(answers, created_before=int(time.time()) - 100) == ["b"]
    for refused in (answers.completions.get, answers.completions.delete):
        with pytest.raises(NotFoundError):
            refused("c", "k")
    assert answers.completions.get("c", None).user == "u"


def test_the_same_feedback_again_changes_nothing(answers):
    first = Feedback(completion="a", key="k", model="m", thumbs="up", author="ann")
    kept, changed = answers.feedback.put(first)
    assert changed
    assert kept == first
    again = Feedback(completion="a", key="k", model="m", thumbs="up", author="ann", updated_at=1)
    assert answers.feedback.put(again) == (first, False)
    other = Feedback(completion="a", key="k", model="m", thumbs="down", author="ann")
    kept, changed = answers.feedback.put(other)
    assert changed
    assert (kept.id, kept.thumbs) == (first.id, "down")
    answers.feedback.put(Feedback(completion="a", key="k", model="m", thumbs="up", author="bob"))
    assert [f.author for f in answers.feedback.on(["a"])] == ["ann", "bob"]


def test_threads_share_a_database(answers):
    """One in memory is a single connection: transactions of several threads take turns."""
    failures = []

    def work(name: str) -> None:
        try:
            for i in range(20):
                answers.completions.add([row(f"{name}{i}")], FOREVER)
                ids(answers)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(ids(answers)) == 60
